"""Small forward passes of one live model, and all rows at its sites."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.inputs import InputBatch
from sonde.core.site import Reducer, Site
from sonde.findings.evidence.modules.unused_modules import Silent
from sonde.findings.evidence.modules.without_dropout import without_dropout
from sonde.tap import LiveStream
from sonde.tap.hooks.outputs import leaves
from sonde.tap.model.probe import find_logits
from sonde.tap.model.seeding import seed_everything
from sonde.tap.model.watch import watch
from sonde.tap.rows.frame import Frame
from sonde.tap.rows.reduce import Reduction, possible


@dataclass(frozen=True, eq=False)
class TrialRows:
    """Rows at one site in float64, sorted by the example that they belong to."""

    x: Float[Tensor, "row dim"]
    example: Int[Tensor, "row"]


Taken = dict[str, TrialRows]
ANSWERS = "answers"
"""Name of the model's answers beside the sites: one row for each example."""


@dataclass(frozen=True)
class _Read:
    """How a site is reduced to rows."""

    site: Site
    reduction: Reduction
    dtype: str


class Trials:
    """A runner of small batches through the model of a stream.

    Parameters
    ----------
    stream : LiveStream

    Attributes
    ----------
    silent : Silent
        Modules that no forward has used; the first forward is watched closely.
    tensors : dict of str to Tensor
        Raw tensors at and before each site in the first forward, by the site's text.
    padding : set of str
        Sites where padded positions held NaN or infinity while no real token did.
    calm : bool
        Whether forwards run without dropout.
    n_numbers : int or None
        How many floating-point numbers an input holds; None if it holds other numbers, such as ids.
    """

    def __init__(self, stream: LiveStream) -> None:
        self.module, self.place = stream.model.module, stream.probe.place
        self.calm, self.logits_key = False, stream.logits_key
        self.silent = Silent(self.module, stream.probe)
        self.tensors: dict[str, Tensor] = {}
        self.padding: set[str] = set()
        self.n_numbers: int | None = None
        self.sites: dict[str, _Read] = {}
        for kind in stream.kinds:
            axes = kind.reduction.axes
            name = next(n for n in ("tokens", "patches", "mean") if n in possible(axes))
            if "|" not in kind.key and kind.site.port != "grad":
                reduction = Reduction(Reducer(name, keep_special=True), axes)
                self.sites[kind.key] = _Read(kind.site, reduction, kind.schema.dtype)

    def read(self, batch: InputBatch, which: Sequence[int], seed: int) -> Taken:
        """Run a batch of the examples ``which`` under a random seed and return rows by site."""
        seed_everything(self.module, seed)
        tensors, output = self._run(batch)
        frame, rows_of = None, {}
        for key, how in self.sites.items():
            raw = tensors.get(str(how.site))
            if raw is None:
                continue
            if frame is None or frame.device != raw.device:
                frame = Frame(batch, raw.device)
            x, layout = how.reduction(raw, frame)
            if torch.isfinite(x).all() and not torch.isfinite(raw).all() and _has_padding(batch):
                self.padding.add(key)
            example = torch.tensor(which)[frame.columns(layout).example]
            rows_of[key] = _sorted(x.double().cpu(), example)
        answers = answers_of(output, self.logits_key, len(which))
        if answers is not None:
            rows_of[ANSWERS] = _sorted(answers, torch.tensor(which))
        return rows_of

    def _run(self, batch: InputBatch) -> tuple[dict[str, Tensor], object]:
        sites = [how.site for how in self.sites.values()]
        entering = [Site(s.path, s.call, "in") for s in sites if s.port == "out"]
        is_first = not self.tensors
        around: AbstractContextManager[None] = (
            self.silent.touching() if is_first else self.silent.listening()
        )
        wanted = [*sites, *entering] if is_first else sites
        with without_dropout(self.module) if self.calm else nullcontext():
            watched = watch(
                self.module,
                batch,
                wanted,
                as_found=not self.module.training,
                around=around,
                place=self.place,
            )
        tensors = watched.tensors
        if is_first:
            self.tensors = tensors
            self.n_numbers = _numbers_in_one(batch)
        return tensors, watched.output


def answers_of(output: object, key: str | None, n: int) -> Float[Tensor, "row dim"] | None:
    """Return the logits of ``n`` examples, else all outputs as rows, or None."""
    logits = None if key is None else find_logits(output, key)
    tensors = [logits] if logits is not None else list(leaves(output).values())
    kept = [x for x in tensors if x.ndim == 2 and len(x) == n and x.is_floating_point()]
    return torch.cat([x.detach().cpu().double() for x in kept], 1) if kept else None


def _numbers_in_one(batch: InputBatch) -> int | None:
    values = (*batch.args, *batch.kwargs.values())
    given = [v for v in values if isinstance(v, Tensor)]
    if not given or len(given) < len(values) or not all(v.is_floating_point() for v in given):
        return None
    return sum(v[0].numel() for v in given)


def _has_padding(batch: InputBatch) -> bool:
    return batch.mask is not None and not bool(batch.mask.all())


def _sorted(x: Tensor, example: Tensor) -> TrialRows:
    order = torch.argsort(example, stable=True)
    return TrialRows(x[order], example[order])


def joined(parts: Sequence[Taken]) -> Taken:
    """Return the rows of several forward passes together."""
    return {
        key: _sorted(
            torch.cat([p[key].x for p in parts]), torch.cat([p[key].example for p in parts])
        )
        for key in parts[0]
        if all(key in p and p[key].x.shape[1] == parts[0][key].x.shape[1] for p in parts)
    }


def of_example(taken: Taken, which: int) -> Taken:
    """Return the rows of one example."""
    return {
        key: TrialRows(rows.x[rows.example == which], rows.example[rows.example == which])
        for key, rows in taken.items()
    }
