"""Base of cache rules that take their scores from another rule."""

from sonde.core import CacheRule
from sonde.core.cache_rule import Queries


class RuleAround(CacheRule):
    """A rule that takes its scores from an inner rule. The inner rule's budget is not used."""

    rule: CacheRule

    def reads_attention(self) -> Queries:
        """Return the number of last queries whose attention the inner rule reads."""
        return self.rule.reads_attention()

    def reads_queries(self) -> int | None:
        """Return the first token whose query the inner rule reads, or None if it reads no query."""
        return self.rule.reads_queries()

    def reads_rotation(self) -> bool:
        """Return whether the inner rule needs the rotation of the queries."""
        return self.rule.reads_rotation()
