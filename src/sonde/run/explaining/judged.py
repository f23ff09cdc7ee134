"""An attribution with the tests that could have refuted it."""

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Bool, Float
from scipy.stats import t as student  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from sonde.explain import Attribution
from sonde.stats.intervals import clopper_pearson

TESTS: Final = ("deletion", "insertion", "violation", "sanity", "inputs")
LEVEL: Final = 0.025
"""How often an attribution without effect may pass."""
LEAST: Final = 0.1
"""Effect from which on an attribution can be believed; 1 = all at once, 0 = as random orders."""
FEWEST: Final = 5
"""Inputs from which on a class is judged by itself."""
ENOUGH: Final = 8
"""Inputs from which on signs that all hold are no coin's, though one in four moves nothing."""


@dataclass(frozen=True)
class Verdict:
    """Verdict of the tests on an attribution, for all inputs or for the inputs of a class.

    ``effect`` is the gain over random orders as a share of what the places are worth together: the
    objective with all places less the objective with none. ``p`` is the probability of so large a
    gain by chance. ``better`` counts inputs with a gain above 0, ``moved`` inputs whose largest
    place moves the answer at all, and ``wrong`` inputs whose largest place moves it against its
    sign.
    """

    label: str | None
    n: int
    gain: float
    effect: float
    p: float
    better: int
    wrong: int
    moved: int
    signed: bool
    level: float

    @property
    def is_believable(self) -> bool:
        """True if the effect is large and significant, and any signs are mostly correct."""
        is_clear = self.p < self.level and self.effect >= LEAST
        _, high = clopper_pearson(self.wrong, self.moved) if self.moved else (0.0, 1.0)
        return is_clear and (not self.signed or high < 0.5)

    @property
    def is_open(self) -> bool:
        """True if every input supports the attribution, but too few were tested to believe it."""
        held = self.n < ENOUGH and self.better == self.n and self.wrong == 0
        return held and self.effect >= LEAST and not self.is_believable

    def json(self) -> dict[str, Any]:
        """Return the results by name."""
        names = ("label", "n", "gain", "effect", "p", "better", "wrong", "moved")
        verdict = {"believable": self.is_believable, "open": self.is_open}
        return {name: getattr(self, name) for name in names} | verdict


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
    inputs : dict
        For each input: ``gain`` (insertion less deletion, beyond the mean of random orders),
        ``worth`` (the objective of the whole input less that of the empty input), ``wrong``
        (whether the largest place has the wrong sign; None if it moves nothing) and ``label``, the
        class that is explained. ``chance`` holds the mean gain of each random order.
    """

    word: str
    found: Attribution
    deletion: dict[str, Any]
    insertion: dict[str, Any]
    violation: dict[str, Any]
    sanity: dict[str, Any]
    inputs: dict[str, Any]

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdict on all inputs, then the verdicts on classes with enough inputs."""
        labels: list[str] = self.inputs["label"]
        counts = {label: labels.count(label) for label in sorted(set(labels))}
        judged = [label for label, n in counts.items() if FEWEST <= n < len(labels)]
        whole = self._verdict(None, LEVEL)
        return [whole, *(self._verdict(label, LEVEL / len(judged)) for label in judged)]

    def _verdict(self, label: str | None, level: float) -> Verdict:
        of_label = torch.tensor([label is None or own == label for own in self.inputs["label"]])
        gain, worth, wrong = (
            _numbers(self.inputs[k])[of_label] for k in ("gain", "worth", "wrong")
        )
        mean, size = float(gain.mean()), float(worth.abs().mean())
        return Verdict(
            label=label,
            n=len(gain),
            gain=mean,
            effect=mean / size if size > 0 else 0.0,
            p=_chance(gain, _numbers(self.inputs["chance"])),
            better=int((gain > 0).sum()),
            wrong=int((wrong == 1).sum()),
            moved=int((~wrong.isnan()).sum()),
            signed=bool(self.violation["signed"]),
            level=level,
        )

    @property
    def best(self) -> Verdict:
        """The verdict on all inputs, or on the best class if it holds only for single classes."""
        whole, *classes = self.verdicts
        held = [one for one in classes if one.is_believable]
        if whole.is_believable or not held:
            return whole
        return max(held, key=lambda one: one.effect)

    @property
    def effect(self) -> float:
        """The effect over all inputs, by which attributions are ranked."""
        return self.verdicts[0].effect

    def lead(self, other: "Judged | None" = None, label: str | None = None) -> tuple[float, float]:
        """Return the 95 % interval of the effect, or of its lead over another attribution's.

        By the t-distribution over inputs, or over inputs of a class; two attributions are compared
        input by input. Infinite with fewer than two inputs.
        """
        of_label = torch.tensor([label is None or own == label for own in self.inputs["label"]])
        each = self._effects(of_label) - (0.0 if other is None else other._effects(of_label))
        if len(each) < 2:
            return -math.inf, math.inf
        width = student.ppf(0.975, len(each) - 1) * float(each.std()) / len(each) ** 0.5  # pyright: ignore[reportUnknownMemberType]
        return float(each.mean()) - width, float(each.mean()) + width

    def _effects(self, mine: Bool[Tensor, "row"]) -> Float[Tensor, "_row"]:
        """Return the effect on some inputs, as a fraction of the mean effect of positions."""
        gain, worth = (_numbers(self.inputs[k])[mine] for k in ("gain", "worth"))
        size = float(worth.abs().mean())
        return gain / size if size > 0 else 0 * gain

    @property
    def is_believable(self) -> bool:
        """True if the attribution can be believed on all inputs, or on all inputs of some class."""
        return self.best.is_believable


def _numbers(values: Any) -> Float[Tensor, "row"]:
    return torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float64)


def _chance(gain: Float[Tensor, "row"], orders: Float[Tensor, "order"]) -> float:
    """Return the one-sided p-value of the mean gain over random orders.

    The mean gain is compared with the spread of gains over inputs; for fewer than ``FEWEST``
    inputs, with the spread over random orders.
    """
    if len(gain) >= FEWEST:
        error, df = gain.std() / len(gain) ** 0.5, len(gain) - 1
    elif len(orders) > 1:
        error, df = orders.std() * (1 + 1 / len(orders)) ** 0.5, len(orders) - 1
    else:
        return 1.0
    if not float(error) > 0:
        return 0.0 if float(gain.mean()) > 0 else 1.0
    return float(student.sf(float(gain.mean() / error), df))  # pyright: ignore[reportUnknownMemberType]
