"""Whether a state is a function of its row: the same few examples, fed in different company.

Small forwards before the pass: twice under other random seeds, alone and together, in another
order, and padded on either side. What differs is measured against the spread between rows.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.inputs import InputBatch
from sonde.core.site import Reducer, Site
from sonde.findings._probes import Side, SmallBatches, small_batches
from sonde.tap import LiveStream
from sonde.tap.reduce import Frame, Reduction, possible
from sonde.tap.watch import watch

TAU, TAU_NARROW = 1e-3, 3e-2
NARROW = ("float16", "bfloat16")
ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
RESOLVED = 2.0


@dataclass(frozen=True)
class Deltas:
    """How much the states of the same rows differ between two ways to compute them, by site.

    Parameters
    ----------
    values : dict of str to float
        Root mean square difference over root mean square spread between rows, in order of
        execution; the larger of that over all units and the median over units.
    n_rows : int
        Examples that were compared.
    """

    values: dict[str, float]
    n_rows: int

    @property
    def worst(self) -> float:
        """Largest difference over sites."""
        return max(self.values.values(), default=0.0)

    @property
    def worst_site(self) -> str:
        """Site of the largest difference."""
        return max(self.values, key=lambda key: self.values[key], default="")

    def beyond(self, tau: float) -> list[str]:
        """Return the sites that differ by more than ``tau``, in order of execution."""
        return [key for key, value in self.values.items() if value > tau]


@dataclass(frozen=True)
class SelfCheck:
    """What the small forwards showed; None where a comparison could not be made.

    Parameters
    ----------
    tau : float
        Difference that rounding may make in the type of the states.
    dtype : str
        Type of the states: the narrowest of the sites.
    n_rows : int
        Examples chosen.
    repeat : Deltas or None
        The same batch under another random seed.
    alone, shuffled : Deltas or None
        Examples of equal size one by one, and together in another order, against together.
    right, left, left_positions : Deltas or None
        Texts padded on the right, on the left, and on the left with positions from the mask,
        against one by one.
    reasons : dict of str to str
        Why a comparison could not be made.
    buffers : tuple of str
        Buffers that the forwards changed (put back afterwards).
    """

    tau: float
    dtype: str
    n_rows: int
    repeat: Deltas | None = None
    alone: Deltas | None = None
    shuffled: Deltas | None = None
    right: Deltas | None = None
    left: Deltas | None = None
    left_positions: Deltas | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()

    @property
    def is_narrow(self) -> bool:
        """Whether states have 16 bits."""
        return self.dtype in NARROW

    @property
    def company(self) -> Deltas | None:
        """The larger of what other rows and another order of rows changed."""
        known = [d for d in (self.alone, self.shuffled) if d is not None]
        return max(known, key=lambda d: d.worst, default=None)


def self_check(stream: LiveStream, seed: int = 0) -> SelfCheck:
    """Run the small forwards on eight examples chosen by hash.

    A model in eval mode is run with its flags as they are, so that a part left in training shows;
    one in training mode is run in eval mode. Weights, buffers and random state are left as found.
    """
    module = stream.model.module
    small = small_batches(stream, seed)
    reader = _Rows(stream)
    narrow = any(k.schema.dtype in NARROW for k in stream.kinds)
    dtype = min((k.schema.dtype for k in stream.kinds), key=lambda d: -ROUNDING.get(d, 0.0))
    reasons: dict[str, str] = {}
    found: dict[str, Deltas | None] = {}
    with untouched(module) as changed, torch.no_grad():
        if len(small) == 0:
            reasons["repeat"] = "no example could be read"
        else:
            _equal_sizes(small, reader, found, reasons, seed)
            _padding(small, reader, found, reasons, seed)
    return SelfCheck(
        tau=TAU_NARROW if narrow else TAU,
        dtype=dtype,
        n_rows=len(small),
        reasons=reasons,
        buffers=tuple(changed),
        **found,
    )


def _equal_sizes(
    small: SmallBatches,
    reader: "_Rows",
    found: dict[str, Deltas | None],
    reasons: dict[str, str],
    seed: int,
) -> None:
    even = small.evened()
    together = reader.read(even.together(), seed)
    again = reader.read(even.together(), seed + 1)
    found["repeat"] = reader.deltas(together, again, len(even))
    if len(even) < 2:
        reasons["alone"] = "needs two examples of one size"
        return
    order = list(range(len(even)))[::-1]
    shuffled = reader.read(even.together(order), seed, order)
    found["alone"] = _alone(even, reader, together, reasons, seed)
    found["shuffled"] = reader.deltas(together, shuffled, len(even))


def _alone(
    even: SmallBatches, reader: "_Rows", together: "Taken", reasons: dict[str, str], seed: int
) -> Deltas | None:
    """Compare together with one by one, or with halves where the model refuses a single row."""
    middle = len(even) // 2
    halves = [list(range(middle)), list(range(middle, len(even)))]
    for parts in ([[i] for i in range(len(even))], halves):
        try:
            rows = reader.joined([reader.read(even.together(part), seed) for part in parts])
        except Exception as error:  # e.g. a batch norm in training mode given one row
            reasons["alone"] = f"the forward refused fewer rows ({type(error).__name__})"
            continue
        return reader.deltas(together, rows, len(even))
    return None


def _padding(
    small: SmallBatches,
    reader: "_Rows",
    found: dict[str, Deltas | None],
    reasons: dict[str, str],
    seed: int,
) -> None:
    lengths = small.lengths
    if lengths is None:
        reasons["right"] = "inputs are no texts"
    elif not small.takes_mask:
        reasons["right"] = "the model takes no attention mask"
    elif len(set(lengths)) < 2:
        reasons["right"] = "needs two texts of different length"
    else:
        alone = reader.joined([reader.read(s, seed) for s in small.singles])
        wanted: list[tuple[str, Side, bool]] = [("right", "right", False), ("left", "left", False)]
        if small.takes_positions:
            wanted.append(("left_positions", "left", True))
        for name, side, positions in wanted:
            try:
                rows = reader.read(small.padded(side, positions), seed)
            except Exception as error:  # a model may refuse one way to pad and bear the others
                reasons[name] = f"the forward refused it ({type(error).__name__})"
                continue
            found[name] = reader.deltas(alone, rows, len(small))


Taken = dict[str, Float[Tensor, "_row _dim"]]


class _Rows:
    """Reads all rows (tokens, patches) at the sites of a stream from single forwards."""

    def __init__(self, stream: LiveStream) -> None:
        self.module = stream.model.module
        self.sites: dict[str, tuple[Site, Reduction, str]] = {}
        for kind in stream.kinds:
            axes = kind.reduction.axes
            name = next(n for n in ("tokens", "patches", "mean") if n in possible(axes))
            if "|" not in kind.key and kind.site.port != "grad":
                reduction = Reduction(Reducer(name, keep_special=True), axes)  # type: ignore[arg-type]
                self.sites[kind.key] = (kind.site, reduction, kind.schema.dtype)

    def read(self, batch: InputBatch, seed: int, order: Sequence[int] | None = None) -> Taken:
        """Return rows by site, in order of the examples before ``order`` was applied."""
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the global generator is what a model may draw from
        random.seed(seed)
        sites = [site for site, _, _ in self.sites.values()]
        watched = watch(self.module, batch, sites, as_found=not self.module.training)
        frame, rows = None, {}
        for key, (site, reduction, _) in self.sites.items():
            raw = watched.tensors.get(str(site))
            if raw is None:
                continue
            if frame is None or frame.device != raw.device:
                frame = Frame(batch, raw.device)
            x, layout = reduction(raw, frame)
            if order is not None:
                example = frame.columns(layout).example
                x = x[torch.argsort(torch.tensor(order)[example], stable=True).to(x.device)]
            rows[key] = x.double().cpu()
        return rows

    @staticmethod
    def joined(parts: list[Taken]) -> Taken:
        """Return the rows of several forwards one after another."""
        keys = [k for k in parts[0] if all(k in p for p in parts)]
        return {k: torch.cat([p[k] for p in parts]) for k in keys}

    def deltas(self, a: Taken, b: Taken, n_rows: int) -> Deltas:
        """Return how far two readings of the same rows are apart."""
        values = {
            key: difference(a[key], b[key], ROUNDING.get(self.sites[key][2], ROUNDING["float32"]))
            for key in a
            if key in b and a[key].shape == b[key].shape
        }
        return Deltas(values, n_rows)


def difference(a: Float[Tensor, "row dim"], b: Float[Tensor, "row dim"], rounding: float) -> float:
    """Return the rms difference of two readings over the rms spread of rows of the first.

    The larger of the figure over all units and its median over units that vary: one huge unit hides
    what happens to the others in the first, a fault of few units does not move the second. A spread
    that the number format cannot resolve counts as the smallest that it can.
    """
    finite = torch.isfinite(a).all(dim=1) & torch.isfinite(b).all(dim=1)
    a, b = a[finite], b[finite]
    if len(a) == 0:
        return 0.0
    gap = (a - b).square().mean(0)
    if not bool(gap.any()):
        return 0.0
    tau = TAU_NARROW if rounding > ROUNDING["float32"] else TAU
    least = (RESOLVED * rounding / tau) ** 2 * a.square().mean(0)
    spread = a.var(0, correction=0).maximum(least)
    if not bool(spread.any()):
        spread = a.square().mean(0)
    total = gap.sum() / spread.sum().clamp(min=torch.finfo(torch.float64).tiny)
    alive = spread > 0
    median = (gap[alive] / spread[alive]).median() if bool(alive.any()) else total
    return float(torch.maximum(total, median).sqrt())


@contextmanager
def untouched(module: nn.Module) -> Iterator[list[str]]:
    """Give back random states and buffers as they were; yields the names of changed buffers."""
    before = {n: b.detach().clone() for n, b in module.named_buffers() if not b.is_meta}
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    changed: list[str] = []
    try:
        with torch.random.fork_rng(devices=_devices(module)):
            yield changed
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        for name, buffer in module.named_buffers():
            old = before.get(name)
            if old is not None and not torch.equal(old, buffer) and not _both_nan(old, buffer):
                changed.append(name)
                with torch.no_grad():
                    buffer.copy_(old)


def _both_nan(a: Tensor, b: Tensor) -> bool:
    return a.is_floating_point() and torch.equal(a.nan_to_num(), b.nan_to_num())


def _devices(module: nn.Module) -> list[int]:
    found = {p.device for p in module.parameters() if p.device.type == "cuda"}
    return sorted(d.index or 0 for d in found)
