"""An attribution with the tests that could have refuted it."""

from dataclasses import dataclass
from typing import Any, Final

from sonde.explain import Attribution

TESTS: Final = ("deletion", "insertion", "violation", "sanity")
CLEAR = 2.0
"""So many standard deviations of random orders an attribution must lie beyond their mean."""


@dataclass(frozen=True, eq=False)
class Judged:
    """One attribution of a batch with its tests.

    Parameters
    ----------
    word : str
        The method with its parameters.
    found : Attribution
    deletion, insertion : dict
        ``value``, ``se``, ``random`` (mean over random orders) and ``random_spread``.
    violation : dict
        ``value`` with its interval (``low``, ``high``), ``base_rate``, ``signed``.
    sanity : dict
        ``value`` with its ``se``: rank correlation with the map of the redrawn model; ``passed``.
    """

    word: str
    found: Attribution
    deletion: dict[str, Any]
    insertion: dict[str, Any]
    violation: dict[str, Any]
    sanity: dict[str, Any]

    @property
    def gain(self) -> float:
        """Insertion less deletion, beyond that of random orders; higher = more faithful."""
        own = self.insertion["value"] - self.deletion["value"]
        return own - (self.insertion["random"] - self.deletion["random"])

    @property
    def is_believable(self) -> bool:
        """Whether both curves beat random orders clearly, and signs hold more often than a coin."""
        down, up = self.deletion, self.insertion
        beats = down["value"] < down["random"] - CLEAR * down["random_spread"]
        beats = beats and up["value"] > up["random"] + CLEAR * up["random_spread"]
        return beats and (not self.violation["signed"] or self.violation["high"] < 0.5)
