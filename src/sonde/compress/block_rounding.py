"""Round neighbouring layers together: the error after the last layer decides the clipping.

For low bits, where one layer can make up for the next. ``GPTQ`` chooses codes one by one, which
gains more; this method chooses one number for each stage.
"""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise, product
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.compress._blocks import placed_call
from sonde.compress._grid import (
    Symmetry,
    check_grid,
    codes_of,
    each_entry,
    grid_of,
    method_of,
    quantised,
)
from sonde.compress._layers import Weighted, weighted_layers
from sonde.compress._tensors import names_of_tensors, plan_with_tensors
from sonde.compress.gptq import loss_of
from sonde.compress.grams import LayerGrams, grams_for, layers_of_weight, parts_of, without_padding
from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.tap import calls_of
from sonde.tap.hand.recording import Forward, intercepted
from sonde.tap.hooks.outputs import find
from sonde.tap.hooks.session import Session
from sonde.tap.rows.padding import right_padded
from sonde.weights import Change, Examples, Grid, Quantised, Rewrite, RewritePlan
from sonde.weights.live import with_tensors

BINS = 256
SHARES = torch.linspace(1, 0.5, 7, dtype=torch.float64).tolist()
"""Parts of a group's range that a clip may leave."""


@final
@dataclass(frozen=True)
class BlockRounding(Rewrite):
    """Round weights to clipped grids, and choose the clipping of neighbouring layers together.

    Layers that read one tensor are a stage. A stage has one clip, chosen from 7 between the whole
    range of a group and half of it. Stages are cut into runs where the entropy of the next stage's
    input is low: low entropy is taken as a sign that the stages on both sides hardly depend on each
    other. In a run the clips start where each stage's own output error is least, and change one
    after the other, if the error behind the last stage falls.

    Range        as ``RTN``; the error behind each run is never above that of the start.
    Cost         one pass over the data, and up to ``7 sweeps`` forwards of ``rows`` examples for
                 each stage; all 49 pairs for a run of two.
    Assumes      layers that run once; inputs of the kind that the model will meet.
    Differs      from the paper: no vision encoder is tuned; runs are fitted at the inputs of the
                 whole model.

    Parameters
    ----------
    bits : int or None, default=4
        2 to 8; None changes nothing.
    group : int, default=32
        Entries of a row that share a scale.
    symmetry : {"asymmetric", "symmetric"}, default="asymmetric"
        Whether a group's grid has an offset of its own (``asymmetric``) or is even around 0
        (``symmetric``).
    most : int, default=4
        Stages of a run.
    price : float, default=0.5
        A run of ``n`` stages costs ``price 2^n`` bits of entropy.
    cuts : sequence of int, optional
        Numbers of the stages that start runs, from 1, in place of starts found by entropy.
    sweeps : int, default=2
        How often all clips of a run are gone through.
    rows : int, default=32
        Examples on which runs are compared.
    layers : sequence of str, optional
        Patterns of layers' names; all linear layers by default, but those tied to an embedding.

    References
    ----------
    wang2024qvlm
    """

    bits: int | None = 4
    group: int = 32
    symmetry: Symmetry = "asymmetric"
    most: int = 4
    price: float = 0.5
    cuts: Sequence[int] | None = None
    sweeps: int = 2
    rows: int = 32
    layers: Sequence[str] | None = None
    paper: ClassVar[str] = "wang2024qvlm"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"bits": 2, "group": 5, "symmetry": "symmetric", "price": 0.1, "layers": ("*",)},
        {"bits": 3, "cuts": (1,)},
    )

    def __post_init__(self) -> None:
        check_grid("BlockRounding", self.bits, self.group)
        check_ranges(self, most=">= 1", sweeps=">= 1", rows=">= 1")

    def reads(self) -> dict[str, Examples]:
        """Read examples, on which the errors after groups are compared."""
        return {"calibration": Examples()}

    def planned(self, model: Model, calibration: Inputs) -> RewritePlan:
        """Return the rounded weights.

        Raises
        ------
        InputError
            If a cut is not the number of a stage after the first.
        """
        word = method_of("BlockRounding", asdict(self))
        if self.bits is None:
            return RewritePlan.of(model, {}, word)
        names = names_of_tensors(model.module, self.layers)
        layers = weighted_layers("BlockRounding", model, self.layers, beside=names)
        asked = self.bits, self.group, self.symmetry
        if not layers:
            return plan_with_tensors(model, self.layers, asked, {}, word)
        grams = grams_for("BlockRounding", model, calibration, self.layers)
        n = min(self.rows, len(calibration))
        search = _Search(model, list(map(right_padded, calibration.batches(0, n))), layers)
        choices = [[self._clipped(layer, share) for share in SHARES] for layer in layers]
        choice = _Choices(dict(zip(layers, choices, strict=True)))
        start = [choice.alone(stage, model, grams) for stage in search.stages]
        entropies = search.entropies()
        if self.cuts is None:
            runs = partition(entropies, self.most, self.price)
        else:
            runs = _runs_of(self.cuts, len(search.stages))
        figures = {f"entropy.{i}": e for i, e in enumerate(entropies, 1)}
        best, lost = list(start), [0.0, 0.0]
        for run in runs:
            clips, errors = search.joint(run, start, choice, self.sweeps)
            best[run.start : run.stop] = clips
            lost = [a + b for a, b in zip(lost, errors, strict=True)]
            figures[f"gain.{run.start}"] = errors[1] - errors[0]
        figures |= {"loss": lost[0], "loss_start": lost[1], "runs": float(len(runs))}
        changes: dict[str, Change] = {}
        for stage, clip in zip(search.stages, best, strict=True):
            changes |= {layer.weight: choice.of[layer][clip] for layer in stage}
        return plan_with_tensors(model, self.layers, asked, changes, word, figures)

    def _clipped(self, layer: Weighted, share: float) -> Quantised:
        assert self.bits is not None
        w = layer.matrix()
        grid = Grid.over(self.bits, self.group, w.shape[1])
        scale, offset = grid_of(w * share, grid, self.symmetry)
        scales, offsets = (each_entry(x, grid.group, w.shape[1]) for x in (scale, offset))
        return quantised(codes_of(w, scales, offsets, grid.bits), scale, offset, grid, layer)


def partition(entropies: Sequence[float], most: int, price: float) -> list[range]:
    """Return groups of stages with the most entropy inside, at a price for long groups.

    The sum of ``price 2^n`` over runs of ``n`` stages less the entropies between stages of one run
    is least; exact by dynamic programming. Of equal solutions the longest last run is taken.

    Parameters
    ----------
    entropies : sequence of float
        In bits, between each stage and the next: one fewer than stages.
    most : int
        Stages of a run.
    price : float
        Price of a long group, in nats.

    Examples
    --------
    >>> partition([6.0, 1.0, 5.0], most=3, price=0.5)
    [range(0, 2), range(2, 4)]
    """
    n = len(entropies) + 1
    best: list[tuple[float, list[range]]] = [(0.0, [])]
    for stop in range(1, n + 1):
        ways = [
            (
                best[start][0] + price * 2 ** (stop - start) - sum(entropies[start : stop - 1]),
                [*best[start][1], range(start, stop)],
            )
            for start in range(max(0, stop - most), stop)
        ]
        best.append(min(ways, key=lambda way: way[0]))
    return best[n][1]


@dataclass(frozen=True, eq=False)
class _Choices:
    """The rounded weights of each layer for each clipping."""

    of: dict[Weighted, list[Quantised]]

    def alone(self, stage: Sequence[Weighted], model: Model, grams: LayerGrams) -> int:
        """Return the clipping with the smallest output error of a single stage."""
        errors = torch.zeros(len(SHARES), dtype=torch.float64)
        for layer in stage:
            w = layer.matrix()
            for rows, h in parts_of(layer, model, grams):
                for i, change in enumerate(self.of[layer]):
                    error = w[rows] - change.matrix().to(w)[rows]
                    errors[i] += loss_of(error, h).sum().cpu()
        return int(errors.argmin())


class _Done(Exception):
    """Raised after the last stage of a group has run."""


class _Search:
    """Forward passes of a copy of a model, up to the last stage of a group."""

    def __init__(self, model: Model, batches: list[InputBatch], layers: list[Weighted]) -> None:
        self.copy = replace(model, module=with_tensors(model.module, {}))
        self.batches, root = batches, self.copy.module
        self.part = {layer: root.get_submodule(layer.name) for layer in layers}
        self.calls = [placed_call(self.copy, batch) for batch in batches]
        self.seen: dict[nn.Module, list[Tensor]] = defaultdict(list)
        stages: dict[int, list[Weighted]] = {}
        layer_of = {part: layer for layer, part in self.part.items()}
        for batch, (args, kwargs) in zip(batches, self.calls, strict=True):
            for part, x in calls_of(root, list(layer_of), args, kwargs):
                if not self.seen[part] and batch is batches[0]:
                    stages.setdefault(id(x), []).append(layer_of[part])
                self.seen[part].append(without_padding(x, batch))
        self.stages = list(stages.values())

    def entropies(self) -> list[float]:
        """Return the input entropy of each stage but the first, in bits, from 256 equal bins."""
        values: list[float] = []
        for stage in self.stages[1:]:
            x = torch.cat([one.flatten() for one in self.seen[self.part[stage[0]]]]).double()
            x = x[torch.isfinite(x)]
            counts = torch.histc(x, BINS)
            p = counts[counts > 0] / counts.sum()
            values.append(-float((p * p.log2()).sum()))
        self.seen.clear()
        return values

    def joint(
        self, run: range, start: Sequence[int], choices: _Choices, sweeps: int
    ) -> tuple[list[int], tuple[float, float]]:
        """Return a group's best clippings, and the errors with these and with ``start``."""
        last = [self.part[layer] for layer in self.stages[run.stop - 1]]
        wanted = self._outputs(last)
        power = sum(float(y.square().sum()) for y in wanted) or 1.0

        def error(clips: Sequence[int]) -> float:
            for stage, clip in zip(run, clips, strict=True):
                for layer in self.stages[stage]:
                    self._put(layer, layer.tensor(choices.of[layer][clip].matrix()))
            pairs = zip(wanted, self._outputs(last), strict=True)
            return sum(float((y - x).square().sum()) for x, y in pairs) / power

        best = list(start[run.start : run.stop])
        first = least = error(best)
        every = range(len(SHARES))
        if len(run) == 2:
            tried = [list(pair) for pair in product(every, every)]
            errors = [error(clips) for clips in tried]
            if min(errors) < least:
                least = min(errors)
                best = tried[errors.index(least)]
        elif len(run) > 2:
            for _ in range(sweeps):
                before = list(best)
                for i in range(len(run)):
                    ways = [[*best[:i], clip, *best[i + 1 :]] for clip in every]
                    errors = [least if way == best else error(way) for way in ways]
                    if min(errors) < least:
                        least = min(errors)
                        best = ways[errors.index(least)]
                if best == before:
                    break
        for stage in run:
            for layer in self.stages[stage]:
                self._put(layer, layer.module.weight.detach())
        return best, (least, first)

    def _put(self, layer: Weighted, weight: Tensor) -> None:
        root = self.copy.module
        for name in layers_of_weight(root, layer.name):
            root.get_submodule(name)._parameters["weight"] = nn.Parameter(weight, False)

    def _outputs(self, last: Sequence[nn.Module]) -> list[Float[Tensor, "..."]]:
        """Return the outputs of a stage's layers for all batches."""
        outputs: list[Tensor] = []
        for batch, (args, kwargs) in zip(self.batches, self.calls, strict=True):
            left = set(last)

            def around(
                part: nn.Module,
                forward: Forward,
                args: Any,
                kwargs: Any,
                batch: InputBatch = batch,
                left: set[nn.Module] = left,
            ) -> Any:
                output = forward(*args, **kwargs)
                y = find(output, None)
                assert y is not None  # a linear layer or a convolution
                outputs.append(without_padding(y.double(), batch))
                left.discard(part)
                if not left:
                    raise _Done
                return output

            quietly, session = suppress(_Done), Session(self.copy.module)
            with quietly, session, intercepted(last, around), torch.no_grad():
                self.copy.module(*args, **kwargs)
        return outputs


def _runs_of(cuts: Sequence[int], n: int) -> list[range]:
    """Return the groups that start at 0 and at each cut.

    Raises
    ------
    InputError
        If a cut is not the number of a stage after the first.
    """
    wrong = [i for i in cuts if not 0 < i < n]
    if wrong:
        raise InputError(
            f"BlockRounding.plan: expected cuts from 1 to {n - 1}, got {wrong[0]}: the model has "
            f"{n} stages."
        )
    ends = sorted({0, *cuts, n})
    return [range(a, b) for a, b in pairwise(ends)]
