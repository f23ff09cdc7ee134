"""Remove the blocks that change the states least, or replace them by one linear map.

Makes a model smaller and faster on any processor, without a kernel. For narrower layers at the same
depth, ``PruneChannels``.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sonde.compress._blocks import BlockCall, Blocks, block_calls, same_shape, state_rows
from sonde.compress._grid import method_of
from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed
from sonde.stats import CrossMoments, CrossMomentsState, Moments, MomentsState
from sonde.stats.ridge import RIDGE, ridge_map
from sonde.tap import place_of
from sonde.tap.hooks.session import Session
from sonde.tap.rows.padding import right_padded
from sonde.weights import Change, Examples, Exchange, Rewrite, RewritePlan
from sonde.weights.own_config import with_own_config


@renamed(remove="share")
@final
@dataclass(frozen=True)
class DropBlocks(Rewrite):
    """Remove blocks whose output is nearly equal to their input.

    The influence of a block is ``1 - mean cos(x, y)`` over rows ``x`` of the residual stream before
    the block and ``y`` behind it. ``independent`` leaves out the blocks of least influence.
    ``contiguous`` leaves out the run of blocks whose two ends have the smallest mean angle
    ``arccos(cos(x, y)) / pi``. A linear map may take the place of each run that is left out:
    ``y = x M + b`` by ridge regression.

    Range        whole blocks of the longest list of the model; of equal blocks the first goes.
    Cost         one pass over the data; a second one for linear maps, O(dim^3) for each.
    Assumes      blocks that run once and keep the shape of the states.
    Differs      from the papers: influence is taken over all real tokens, also for runs; nothing is
                 trained afterwards; linear maps are fitted in closed form.

    Parameters
    ----------
    remove : float, default=0.25
        Fraction of the blocks that is removed, in [0, 1), rounded half to even; 0 changes nothing.
    blocks : int, optional
        Number of blocks that stay, in place of a fraction.
    how : {"independent", "contiguous"}, default="independent"
        Whether blocks are chosen one by one (``independent``) or as one run (``contiguous``).
    replace : {"linear"}, optional
        What takes the place of each run; nothing by default.
    ridge : float, default=1e-4
        Added to variances for the linear map, as a share of their mean.

    References
    ----------
    men2024shortgpt
    """

    remove: float = 0.25
    blocks: int | None = None
    how: Literal["independent", "contiguous"] = "independent"
    replace: Literal["linear"] | None = None
    ridge: float = RIDGE
    paper: ClassVar[str] = "men2024shortgpt"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"blocks": 2, "how": "contiguous"},
        {"blocks": 1, "replace": "linear"},
    )

    def __post_init__(self) -> None:
        check_ranges(self, remove="[0, 1)", blocks=">= 1", ridge="> 0")

    def reads(self) -> dict[str, Examples]:
        """Read examples, on which the states before and after each block are compared."""
        return {"calibration": Examples()}

    def planned(self, model: Model, calibration: Inputs) -> RewritePlan:
        """Return the kept blocks.

        Raises
        ------
        InputError
            If the model has no blocks that may go, or fewer than are to stay.
        """
        word = method_of("DropBlocks", asdict(self))
        blocks = Blocks.of("DropBlocks", model, calibration)
        n = len(blocks.modules)
        n_gone = round(self.remove * n) if self.blocks is None else n - self.blocks
        if n_gone < 0 or n_gone >= n:
            raise InputError(
                f"DropBlocks.plan: expected 1 to {n} of the {n} blocks in {blocks.name} to stay, "
                f"got {n - n_gone}."
            )
        if n_gone == 0:
            return RewritePlan.of(model, {}, word)
        walk = _Walk(model, blocks, calibration)
        if self.how == "contiguous":
            scores = walk.influences(n_gone, angle=True)
            first = int(scores.argmin())
            gone = [*range(first, first + n_gone)]
        else:
            scores = walk.influences(1, angle=False)
            gone = sorted(scores.argsort(stable=True)[:n_gone].tolist())
        if not bool(scores[gone if self.how == "independent" else gone[:1]].isfinite().all()):
            raise InputError(
                f"DropBlocks.plan: expected {n_gone} blocks of {blocks.name} that keep the shape "
                "of the states, got fewer. Leave out fewer blocks."
            )
        figures = {f"influence.{i}": float(score) for i, score in enumerate(scores)}
        return self._planned(model, walk, gone, word, figures)

    def _planned(
        self, model: Model, walk: "_Walk", gone: list[int], word: str, figures: dict[str, float]
    ) -> RewritePlan:
        name, n = walk.blocks.name, len(walk.blocks.modules)
        runs = _runs(gone)
        if self.replace is None:
            kept = {name: [i for i in range(n) if i not in gone]}
            return walk.checked(RewritePlan.shaped(model, {}, word, figures, blocks=kept))
        changes, sizes = dict[str, Change](), dict[str, list[int]]()
        moments, first = walk.moments(runs)
        for i, (x, cross) in enumerate(moments, 1):
            weight, bias = ridge_map(x, cross, self.ridge)
            changes[f"{name}.{-i}.weight"] = Exchange(weight.T.float().contiguous())
            changes[f"{name}.{-i}.bias"] = Exchange(bias.float())
            sizes[str(-i)] = list(weight.shape)
        starts = {run.start: -i for i, run in enumerate(runs, 1)}
        kept = {name: [starts.get(i, i) for i in range(n) if i not in gone or i in starts]}
        forms = {name: {"linear": sizes, "first": first}}
        plan = RewritePlan.shaped(model, changes, word, figures, forms=forms, blocks=kept)
        kinds = getattr(model.config, "layer_types", None) or ()
        if len({*kinds}) > 1:
            raise InputError(
                "DropBlocks.plan: expected blocks of one kind for replace='linear', got "
                f"{', '.join(sorted({*kinds}))}: caches distinguish these kinds by their "
                "position. Leave blocks out with replace=None."
            )
        return walk.checked(plan)


@dataclass(frozen=True, eq=False)
class _Walk:
    """States before and after blocks, over data."""

    model: Model
    blocks: Blocks
    inputs: Inputs

    def influences(self, length: int, angle: bool) -> Float[Tensor, "block"]:
        """Return the angle by which each group of blocks turns rows; infinite for new shapes."""
        n = len(self.blocks.modules) - length + 1
        totals, rows = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
        for batch, calls in self._calls():
            for i in range(n):
                run = calls[i : i + length]
                if not same_shape(run) or not _joined(run):
                    totals[i] = math.inf
                    continue
                x, y = _finite(state_rows(run[0].x, batch), state_rows(run[-1].y, batch))
                cosine = torch.where(
                    (x == y).all(1), 1.0, functional.cosine_similarity(x, y, dim=1)
                ).clamp(-1, 1)
                moved = cosine.arccos() / math.pi if angle else 1 - cosine
                totals[i] += float(moved.sum())
                rows[i] += len(x)
        if not bool((rows > 0).any()):
            raise InputError("DropBlocks.plan: expected finite states after blocks, got none.")
        return totals / rows.clamp(min=1)

    def moments(
        self, runs: Sequence[range]
    ) -> tuple[list[tuple[MomentsState, CrossMomentsState]], bool]:
        """Return the moments of states before and after groups, and whether blocks give tuples."""
        total: list[tuple[MomentsState, CrossMomentsState]] = []
        first = False
        for batch, calls in self._calls():
            first = isinstance(calls[0].output, tuple)
            ends = [(calls[run.start].x, calls[run[-1]].y) for run in runs]
            pairs = [_finite(state_rows(x, batch), state_rows(y, batch)) for x, y in ends]
            new = [(Moments().observe(x), CrossMoments().observe(x, y)) for x, y in pairs]
            total = new if not total else [
                (Moments().merge(a, c), CrossMoments().merge(b, d))
                for (a, b), (c, d) in zip(total, new, strict=True)
            ]  # fmt: skip
        return total, first

    def checked(self, plan: RewritePlan) -> RewritePlan:
        """Return the plan with the configuration options that give the new shapes.

        Raises
        ------
        InputError
            If the model does not run without these blocks.
        """
        batch = right_padded(next(iter(self.inputs.batches(0, 1))))
        args, kwargs = place_of(self.model.module, batch).call(batch.args, batch.kwargs)
        new = plan.fold(self.model)
        try:
            with Session(new), torch.no_grad():
                new(*args, **kwargs)
        except Exception as error:  # whatever a model raises that misses what a block made
            change = "with a linear map in place of" if plan.forms else "without"
            raise InputError(
                f"DropBlocks.plan: {type(new).__name__} does not run {change} these blocks of "
                f"{self.blocks.name} ({type(error).__name__}: {error}). What they return beside "
                "the states may be needed. Leave out other blocks, or use a method that changes "
                "single layers."
            ) from error
        return with_own_config(self.model, plan)

    def _calls(self) -> Iterator[tuple[InputBatch, list[BlockCall]]]:
        """Yield each batch with the recorded calls of all blocks."""
        for batch in map(right_padded, self.inputs.batches(0, len(self.inputs))):
            calls = block_calls("DropBlocks", self.model, self.blocks, batch)
            yield batch, [calls[block] for block in self.blocks.modules]


def _joined(run: Sequence[BlockCall]) -> bool:
    """Return whether each block of a group reads the states that the previous block returned."""
    return all(
        a.y.shape == b.x.shape and bool(((a.y == b.x) | a.y.isnan()).all())
        for a, b in pairwise(run)
    )


def _finite(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    both = torch.isfinite(x).all(1) & torch.isfinite(y).all(1)
    return x[both], y[both]


def _runs(places: Sequence[int]) -> list[range]:
    """Return sorted positions as groups of neighbours."""
    runs: list[range] = []
    for i in places:
        if runs and runs[-1].stop == i:
            runs[-1] = range(runs[-1].start, i + 1)
        else:
            runs.append(range(i, i + 1))
    return runs
