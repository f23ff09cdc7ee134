"""Test whether a state depends only on its row: the same examples in other batches.

A healthy model takes at most eight small forwards before the pass: under two random seeds, with
other rows in the batch, and padded. Differences are measured against the spread between rows.
"""

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.hashing import base_hashes
from sonde.core.repacking import count_weights
from sonde.findings.evidence.modules.small_forwards import (
    ANSWERS,
    Taken,
    TrialRows,
    Trials,
    joined,
    of_example,
)
from sonde.findings.trial import Trial
from sonde.tap import LiveStream
from sonde.tap.model.seeding import untouched
from sonde.tap.streams.difference import NARROW, ROUNDING, TAU, TAU_NARROW, difference
from sonde.tap.streams.padding_sides import padding_side
from sonde.tap.streams.small_batches import (
    LONGEST,
    SHORTEST,
    Side,
    SmallBatches,
    small_batches,
)

ROWS = 8
LARGE: Final = 50_000_000
"""Weights of a model from which the texts of a self-check are half as long."""


@dataclass(frozen=True)
class Deltas:
    """Difference by site between states of the same rows, computed in two ways.

    Parameters
    ----------
    values : dict of str to float
        Root mean square difference over root mean square spread between rows, in order of
        execution; the larger of that over all units and the median over units.
    n_rows : int
        Examples that were compared.
    answers : float
        The same of the model's answers; 0 if they are not known.
    """

    values: dict[str, float]
    n_rows: int
    answers: float = 0.0

    @property
    def worst(self) -> float:
        """Largest difference over sites and answers."""
        return max(*self.values.values(), self.answers, 0.0)

    def beyond(self, tau: float) -> list[str]:
        """Return the sites that differ by more than ``tau``, in order of execution."""
        return [key for key, value in self.values.items() if value > tau]


@dataclass(frozen=True)
class SelfCheck:
    """Results of the self-check; None for a comparison that could not be made.

    Parameters
    ----------
    tau : float
        Difference that rounding may make in the type of the states, or in quantised weights.
    dtype : str
        Type of the states: the narrowest of the sites.
    n_rows, n_tokens : int
        Number of chosen examples, and of their tokens (or of the examples, if they have no tokens).
    repeat : Deltas or None
        The same batch under another random seed.
    company : Deltas or None
        One example alone and the others in another order, against all together.
    right, left, left_positions : Deltas or None
        Texts padded on the right, on the left, and on the left with positions from the mask,
        against texts without padding. Without ``deep`` only the processor's side is run; the others
        only if padding on the left does harm.
    future : Deltas or None
        First halves of texts before other second halves; only if the model predicts next tokens.
    reasons : dict of str to str
        Why a comparison could not be made.
    buffers : tuple of str
        Buffers that the forwards changed (put back afterwards).
    undone : Trial or None
        Two runs of the same rows without dropout, if they differ with it and agree without it. Then
        all other comparisons are made without dropout too.
    rounding : float
        How far a row moves if copies of it stand beside it, in spreads of rows: what the arithmetic
        of another shape of the batch does. Only measured if a comparison is beyond ``tau``.
    padding : tuple of str
        Sites where padded positions held NaN or infinity while no real token did.
    """

    tau: float
    dtype: str
    n_rows: int
    n_tokens: int = 0
    repeat: Deltas | None = None
    company: Deltas | None = None
    right: Deltas | None = None
    left: Deltas | None = None
    left_positions: Deltas | None = None
    future: Deltas | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    undone: Trial | None = None
    rounding: float = 0.0
    padding: tuple[str, ...] = ()

    @property
    def is_narrow(self) -> bool:
        """True if the states are rounded to 16 bits or fewer."""
        return self.tau >= TAU_NARROW


def chosen_examples(stream: LiveStream, n: int, seed: int) -> list[int]:
    """Return the index of the first example of each of the ``n`` groups of smallest hash."""
    keys = list(stream.group_keys)
    first: dict[bytes, int] = {}
    for i, key in enumerate(keys):
        first.setdefault(key, i)
    groups = list(first)
    order = np.argsort(base_hashes(groups, "sample", seed), kind="stable")[:n]
    return sorted(first[groups[i]] for i in order.tolist())


def longest_texts(n_weights: int) -> int:
    """Return the most tokens of a text in the self-check of a model of this size.

    Examples
    --------
    >>> longest_texts(1_000_000), longest_texts(135_000_000)
    (64, 32)
    """
    return LONGEST if n_weights < LARGE else LONGEST // 2


def thinned(small: SmallBatches, n: int, seed: int) -> SmallBatches:
    """Return the examples of the ``n`` groups of smallest hash, in their order.

    The first examples would not do: files are often sorted by class.
    """
    keys = [one.group_keys[0] for one in small.singles]
    order = np.argsort(base_hashes(keys, "sample", seed), kind="stable")[:n]
    return replace(small, singles=tuple(small.singles[i] for i in sorted(order.tolist())))


def self_check(
    stream: LiveStream, seed: int = 0, deep: bool = False, trials: Trials | None = None
) -> SelfCheck:
    """Run the self-check's small forward passes on eight examples chosen by hash.

    A model in eval mode is run with its flags as they are, so that a part left in training shows;
    one in training mode is run in eval mode. Weights, buffers and random state are left as found.
    """
    narrow = any(k.schema.dtype in NARROW for k in stream.kinds)
    narrow = narrow or _is_quantised(stream.model.module)
    compared = _Compared(stream, trials or Trials(stream), TAU_NARROW if narrow else TAU, seed)
    with untouched(stream.model.module) as changed, torch.no_grad():
        compared.run(padding_side(stream), deep)
    return SelfCheck(
        tau=compared.tau,
        dtype=min((k.schema.dtype for k in stream.kinds), key=lambda d: -ROUNDING.get(d, 0.0)),
        n_rows=len(compared.small),
        n_tokens=len(compared.small) * (compared.small.length or 1),
        reasons=compared.reasons,
        buffers=tuple(changed),
        undone=compared.undone,
        rounding=compared.rounding,
        padding=tuple(k for k in compared.trials.sites if k in compared.trials.padding),
        **compared.found,
    )


def apart(a: TrialRows, b: TrialRows) -> Float[Tensor, "example"]:
    """Return the distance of each example's rows, in standard deviations over rows."""
    spread = a.x.var(0, correction=0).mean().sqrt().clamp(min=1e-30)
    gap = (a.x - b.x).square().mean(1).sqrt() / spread
    return torch.stack([gap[a.example == i].mean() for i in torch.unique(a.example)])


def _is_quantised(module: nn.Module) -> bool:
    """Return whether weights are quantised; quantised layers may round by the batch's range."""
    held = (v if isinstance(v, tuple) else (v,) for v in module.state_dict().values())
    return any(isinstance(t, torch.Tensor) and t.is_quantized for parts in held for t in parts)


class _Compared:
    """The comparisons of a self-check, all with the rows of one batch of all examples."""

    def __init__(self, stream: LiveStream, trials: Trials, tau: float, seed: int) -> None:
        self.stream, self.trials, self.tau, self.seed = stream, trials, tau, seed
        self.small = self._small(longest_texts(count_weights(stream.model.module)))
        self.found: dict[str, Deltas | None] = {}
        self.reasons: dict[str, str] = {}
        self.undone: Trial | None = None
        self.rounding = 0.0

    def run(self, side: Side, deep: bool) -> None:
        """Make all comparisons that the examples and the model allow."""
        if len(self.small) == 0:
            self.reasons["repeat"] = "no example could be read"
            return
        together = self._together()
        again = self._read(self.small, self._every, self.seed + 1)
        self.found["repeat"] = self._deltas(together, again)
        if self._harms("repeat"):
            together = self._without_dropout(together, again)
        if len(self.small) < 2:
            self.reasons["company"] = "needs two examples of equal size"
        else:
            self.found["company"] = self._company(together)
        if self.stream.model.task == "causal" and (self.small.length or 0) > SHORTEST:
            self.found["future"] = self._future(together)
        self._padding(together, side, deep)
        if any(self._harms(name) for name in self.found if name != "repeat"):
            self.rounding = self._by_shape(together)

    def _by_shape(self, together: Taken) -> float:
        """Return how far a row changes with the batch's shape alone: copies of it are added.

        Kernels for packed weights choose their arithmetic by the number of rows. Experts with a
        limit would refuse copies of a row, so that models with experts are not asked.
        """
        names = self.trials.silent.names.modules
        if any("expert" in name or "router" in name for name in names):
            return 0.0
        worst = 0.0
        try:
            for i in self._every[:3]:
                few, many = (
                    self._read(
                        replace(self.small, singles=(self.small.singles[i],) * n), [*range(n)]
                    )
                    for n in (2, ROWS)
                )
                for key, rows in together.items():
                    a, b = (of_example(taken, 0)[key].x for taken in (few, many))
                    spread = rows.x.var(0, correction=0).sum().sqrt().clamp(min=1e-30)
                    worst = max(worst, float((a - b).square().mean(0).sum().sqrt() / spread))
        except Exception:  # a model that refuses such a batch gives no measure
            return 0.0
        return worst

    def _without_dropout(self, together: Taken, again: Taken) -> Taken:
        """Repeat the two runs without dropout; if they agree, compare everything without it.

        Dropout differs between batches of any two shapes: it would pass for a fault of padding.
        """
        self.trials.calm = True
        calm, twice = (self._read(self.small, self._every, self.seed + i) for i in (0, 1))
        if self._deltas(calm, twice).worst > self.tau:
            self.trials.calm = False
            return together
        key = next(reversed(together))
        rows = self.small.together(self._every).order
        before, after = (-apart(*pair) for pair in ((together[key], again[key]),
                                                    (calm[key], twice[key])))  # fmt: skip
        self.undone = Trial("dropout left out", "mode", "states", rows, before, after)
        return calm

    @property
    def _every(self) -> list[int]:
        return list(range(len(self.small)))

    def _small(self, longest: int | None) -> SmallBatches:
        chosen = chosen_examples(self.stream, ROWS, self.seed)
        return small_batches(self.stream.model, self.stream.inputs, chosen, longest)

    def _read(self, small: SmallBatches, which: list[int], seed: int | None = None) -> Taken:
        return self.trials.read(small.together(which), which, self.seed if seed is None else seed)

    def _together(self) -> Taken:
        """Return the rows of all examples in one batch, truncated if the model accepts that."""
        try:
            return self._read(self.small, self._every)
        except Exception:  # a model for one length only
            self.small = self._small(longest=None)
            return self._read(self.small, self._every)

    def _company(self, together: Taken) -> Deltas | None:
        """Compare with one example alone and the rest reversed, or with halves if that fails."""
        backwards, middle = self._every[::-1], len(self.small) // 2
        for parts in (
            ([0], backwards[:-1]),
            (backwards[:middle], backwards[middle:]),
        ):
            try:
                rows = joined([self._read(self.small, part) for part in parts])
            except Exception as error:  # e.g. a batch norm in training mode given one row
                reason = f"the forward pass rejected fewer rows ({type(error).__name__})"
                self.reasons["company"] = reason
                continue
            return self._deltas(together, rows)
        return None

    def _future(self, together: Taken) -> Deltas | None:
        """Compare first halves of texts before their own and before other second halves."""
        n, length = len(self.small), self.small.length or 0
        half = length // 2
        if n < 2:
            return None
        changed = self.trials.read(self.small.other_endings(half), self._every, self.seed)

        def begun(taken: Taken) -> Taken:
            whole = {k: r for k, r in taken.items() if len(r.x) == n * length}
            first = torch.arange(n * length) % length < half
            return {k: TrialRows(r.x[first], r.example[first]) for k, r in whole.items()}

        return self._deltas(begun(together), begun(changed))

    def _padding(self, together: Taken, side: Side, deep: bool) -> None:
        short = self.small.shortened()
        if isinstance(short, str):
            self.reasons["padding"] = short
            return
        try:
            rest = self._read(short, self._every[1:])
        except Exception as error:  # a model for one length only
            self.reasons["padding"] = (
                f"the forward pass rejected shorter texts ({type(error).__name__})"
            )
            return
        alone = joined([of_example(together, 0), rest])
        sides: tuple[Side, ...] = ("left", "right") if deep else (side,)
        for one in sides:
            self._padded(one, short, alone, one)
        if self._harms("left") and self.small.takes_positions:
            self._padded("left_positions", short, alone, "left")
        if self._harms("left") and self._harms("left_positions", unknown=True) and not deep:
            self._padded("right", short, alone, "right")

    def _padded(self, name: str, short: SmallBatches, alone: Taken, side: Side) -> None:
        try:
            batch = short.padded(side, positions=name == "left_positions")
            rows = self.trials.read(batch, self._every, self.seed)
        except Exception as error:  # a model may refuse one way to pad and bear the others
            self.reasons[name] = f"the forward pass rejected it ({type(error).__name__})"
            return
        self.found[name] = self._deltas(alone, rows)

    def _harms(self, name: str, unknown: bool = False) -> bool:
        deltas = self.found.get(name)
        return unknown if deltas is None else deltas.worst > self.tau

    def _deltas(self, a: Taken, b: Taken) -> Deltas:
        """Return the difference of two readings of the same rows."""
        values = {
            key: difference(a[key].x, b[key].x, ROUNDING.get(how.dtype, ROUNDING["float32"]))
            for key, how in self.trials.sites.items()
            if key in a and key in b and torch.equal(a[key].example, b[key].example)
        }
        answers = 0.0
        pair = [t[ANSWERS] for t in (a, b) if ANSWERS in t]
        if len(pair) == 2 and pair[0].x.shape == pair[1].x.shape:
            widest = max((ROUNDING.get(how.dtype, 0.0) for how in self.trials.sites.values()),
                         default=0.0)  # fmt: skip
            rounding = max(widest, ROUNDING["float32"])
            answers = difference(pair[0].x, pair[1].x, rounding)
        return Deltas(values, len(self.small), answers)
