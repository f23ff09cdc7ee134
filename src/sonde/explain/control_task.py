"""Test whether a probe reads the labels from the states, or learns them by itself.

For rows of tokens or words whose label is a property of the type. Labels that differ within a type
need another control.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.hashing import splitmix64
from sonde.core.instrument import Instrument, NotLabelled, Read
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.core.statistic import Statistic
from sonde.explain._probes import LabelledRows, held_out_right
from sonde.explain.probe import ERROR, labelled_sample, row_flags
from sonde.stats import HashSample, HashSampleState
from sonde.stats.folds import FOLDS


@final
@dataclass(frozen=True, kw_only=True)
class ControlTaskResult(Result):
    """``value`` is the selectivity ``accuracy - control``, both on held-out groups.

    ``majority`` is the accuracy of the most frequent class.
    """

    accuracy: float
    control: float
    majority: float


@final
@dataclass(frozen=True)
class ControlTask(Instrument):
    """Selectivity of a probe: its accuracy on true classes minus its accuracy on random classes.

    Every type (byte, token, word) gets a fixed class drawn from the frequencies of the true
    labels. A probe that only learns by heart reads the drawn classes just as well as the true
    classes; a probe that reads a property of the states does not.

    Range        [-1, 1]; higher = the probe says more about the states than about itself.
    Cost         one pass; state ``4 m (dim + 2)`` bytes; result ``2 folds`` solutions of O(dim^3).
    Assumes      labels; several rows of a type in different groups, else the control is a coin.

    Parameters
    ----------
    types : str, default="position"
        Column of whole numbers that names the type of a row, such as a column of the data with the
        tokens; ``"position"`` asks whether the probe knows places by heart.
    folds : int, default=4
        Number of parts of the groups; each is read by probes fitted on the others.
    m : int, default=10000
        Most rows, whole groups.
    seed : int, default=0
        Seed of the classes drawn.

    Examples
    --------
    >>> x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    >>> found = ControlTask("position").fit(
    ...     x, label=(x[:, 1] > 0).long(), position=torch.arange(300) % 20
    ... )
    >>> found.value > 0.3
    True

    References
    ----------
    hewitt2019control
    """

    types: str = "position"
    folds: int = FOLDS
    m: int = 10_000
    seed: int = 0
    paper: ClassVar[str] = "hewitt2019control"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"types": "group"},
        {"types": "group", "folds": 2, "m": 64},
    )

    def __post_init__(self) -> None:
        check_ranges(self, folds=">= 2", m=">= 4")

    def reads(self) -> dict[str, Statistic[Any] | Read]:
        """Read a sample of whole groups of labelled rows, their labels and their types."""
        types = Read(HashSample(self.m, self.types, groups=True), NotLabelled(-1))
        return {**labelled_sample(self.m), "types_seen": types}

    def result(
        self, sample: HashSampleState, label: HashSampleState, types_seen: HashSampleState
    ) -> ControlTaskResult:
        """Return the selectivity.

        Raises
        ------
        InputError
            If there is one class alone, a class for each row, one group or one type.
        """
        rows = LabelledRows.of("ControlTask", sample, label)
        drawn = self._drawn(rows.member, types_seen.rows)
        right, usual = held_out_right(rows, rows.member, self.folds)
        control, _ = held_out_right(rows, drawn, self.folds)
        above = right.double() - control.double()
        return ControlTaskResult(
            value=float(above.mean()),
            se=rows.shares_error(above),
            null=0.0,
            n=len(right),
            range=(-1.0, 1.0),
            direction="higher",
            flags=row_flags(rows, sample, self.folds),
            conventions={"types": self.types, "seed": self.seed, "se": ERROR},
            accuracy=float(right.double().mean()),
            control=float(control.double().mean()),
            majority=float(usual.double().mean()),
        )

    def _drawn(self, member: Int[Tensor, "row"], types: Tensor) -> Int[Tensor, "row"]:
        """Return a class for each row by a hash of its type, as frequent as the true classes."""
        seen = torch.unique(types)
        if len(seen) < 2:
            raise InputError(
                f"ControlTask: expected rows of several types in the column {self.types!r}, got "
                f"{len(seen)}. Name a column with at least two types."
            )
        key = splitmix64(types.cpu().long().numpy().view(np.uint64) + np.uint64(self.seed))
        draw = torch.from_numpy((key >> np.uint64(11)).astype(np.float64) * 2.0**-53)
        share = torch.bincount(member.cpu()).double().cumsum(0) / len(member)
        return torch.searchsorted(share, draw).to(member.device)
