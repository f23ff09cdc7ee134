"""How large a run of the benchmarks is."""

from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Size:
    """What a benchmark is told.

    Parameters
    ----------
    tiny : bool
        Toy sizes that show only that everything runs.
    offline : bool
        Use only environments of peers that exist already.
    rounds : int
        Rounds in which every arm runs once.
    """

    tiny: bool = False
    offline: bool = False
    rounds: int = 9

    def pick(self, full: T, tiny: T) -> T:
        """Return the full or the tiny value."""
        return tiny if self.tiny else full
