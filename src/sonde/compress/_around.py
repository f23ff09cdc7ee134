"""What rules around another rule share: what that rule reads."""

from sonde.core import CacheRule
from sonde.core.cache_rule import Queries


class RuleAround(CacheRule):
    """A rule that takes scores from another one. The budget of that one is not used."""

    rule: CacheRule

    def reads_attention(self) -> Queries:
        """Return of how many of the last queries the inner rule needs the attention."""
        return self.rule.reads_attention()

    def reads_queries(self) -> int | None:
        """Return from which token on the inner rule needs the moments of queries."""
        return self.rule.reads_queries()

    def reads_rotation(self) -> bool:
        """Return whether the inner rule needs to know how the attention rotates queries."""
        return self.rule.reads_rotation()
