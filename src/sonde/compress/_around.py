"""The base of cache rules that take their scores from another rule."""

from sonde.core import CacheRule
from sonde.core.cache_rule import Queries


class RuleAround(CacheRule):
    """A rule that takes its scores from an inner rule. The inner rule's budget is not used."""

    rule: CacheRule

    def reads_attention(self) -> Queries:
        """Return for how many of the last queries the inner rule needs the attention."""
        return self.rule.reads_attention()

    def reads_queries(self) -> int | None:
        """Return the first token whose query counts for the inner rule; None if no query does."""
        return self.rule.reads_queries()

    def reads_rotation(self) -> bool:
        """Return whether the inner rule needs to know how the attention rotates queries."""
        return self.rule.reads_rotation()
