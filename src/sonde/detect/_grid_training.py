"""The training of ``FOD``: what is usual at each position, then two phases in each step."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.state import size_bytes
from sonde.detect._grid_net import Correlation, GridNet, Rebuilt, row_entropy
from sonde.stats.position_moments import PositionMoments, PositionMomentsState
from sonde.stats.sequences import example_numbers
from sonde.stats.training import SURVEY, TRAIN, Examples, Trainer, TrainingState
from sonde.stats.training_weights import LiveWeights

ALL = 1 << 40
PARTIAL = 0.1


@dataclass(frozen=True, kw_only=True)
class GridTrainingState(TrainingState):
    """What a training holds between images; its loss is the error of an image."""

    places: PositionMomentsState
    n_images: int = 0
    n_partial: int = 0


@final
@dataclass(frozen=True)
class GridTraining(Trainer[GridTrainingState]):
    """The training of ``FOD``; its parameters are described there."""

    net: GridNet
    columns: int | None
    divergence: float
    entropy: float
    passes: int
    batch: int
    rate: float
    max_positions: int
    seed: int
    whole_groups: ClassVar[bool] = True

    def start(self, dim: int) -> GridTrainingState:
        """Return the net before the first step."""
        empty = torch.zeros(0, dim, dtype=torch.float64)
        counts = torch.zeros(0, dtype=torch.int64)
        places = PositionMomentsState(counts, empty, empty, empty[:, :0], torch.arange(dim), dim)
        return GridTrainingState(weights=self.net.start(dim, self.seed), places=places)

    def size_bytes(self, *dims: int) -> int:
        """Return the bytes at the largest number of positions."""
        return size_bytes(self.start(dims[0])) + self._moments.size_bytes(*dims)

    @property
    def _moments(self) -> PositionMoments:
        return PositionMoments("diag", ALL, 0, self.max_positions)

    def survey(
        self,
        state: GridTrainingState,
        x: Tensor,
        ids: Tensor,
        occurrence: Tensor,
        position: Tensor,
    ) -> GridTrainingState:
        """Learn what is usual at each position."""
        seen = self._moments.observe(x.cpu(), position.cpu())
        return replace(state, places=self._moments.merge(state.places, seen))

    def examples(
        self,
        state: GridTrainingState,
        x: Float[Tensor, "row dim"],
        ids: Int[Tensor, "row 2"],
        occurrence: Int[Tensor, "row"],
        position: Int[Tensor, "row"],
    ) -> tuple[GridTrainingState, Examples | None]:
        """Return whole images, in units of each unit's spread."""
        who = torch.column_stack([ids, occurrence]).cpu()
        rows, partial = whole_images(who, position.cpu(), len(state.places.counts))
        state = replace(
            state,
            n_images=state.n_images + len(rows),
            n_partial=state.n_partial + len(partial),
        )
        if len(rows) == 0:
            return state, None
        images = Usual.of(state.places).scaled(x)[rows.to(x.device)].float()
        return state, Examples((images,))

    def loss(
        self, state: GridTrainingState, live: LiveWeights, *batch: Tensor, **_: Any
    ) -> tuple[Tensor, tuple[Tensor]]:
        """Return the loss of images (error, targets, attentions) and the error of each."""
        (images,) = batch
        reference = Usual.of(state.places).reference.float()
        columns = grid_columns(images.shape[1], self.columns)
        rebuilt = self.net(live.values, images, reference, columns)
        error = rebuilt.error(images)
        loss = 2 * error.mean() + self._targets(rebuilt) + self._attentions(rebuilt)
        return loss, (error.mean(1),)

    def _targets(self, rebuilt: Rebuilt) -> Float[Tensor, ""]:
        """Return the loss of the targets: near to the intra attention, far from the inter one."""
        intra = _gap(c.attention_fixed() for c in rebuilt.intra)
        return self.divergence * (intra - _gap(c.attention_fixed() for c in rebuilt.inter))

    def _attentions(self, rebuilt: Rebuilt) -> Float[Tensor, ""]:
        """Return the loss of the attentions: intra wide, far from its target, inter near it."""
        intra = _gap(c.target_fixed() for c in rebuilt.intra)
        inter = _gap(c.target_fixed() for c in rebuilt.inter)
        return self.divergence * (inter - intra) + self.entropy * (
            _spread(rebuilt.inter) - _spread(rebuilt.intra)
        )

    def close_pass(self, state: GridTrainingState) -> GridTrainingState:
        """Raise if images do not fill the grid or over 10 % are incomplete; reset the counts."""
        if state.stage == SURVEY:
            grid_columns(len(state.places.counts), self.columns)
        if state.n_partial > PARTIAL * (state.n_images + state.n_partial):
            raise InputError(
                f"FOD: expected {len(state.places.counts)} patches of every image, got fewer of "
                f"{state.n_partial} of {state.n_images + state.n_partial} images. Give images of "
                "one size, with all patches of an image together and finite."
            )
        state = super().close_pass(state)
        return replace(state, n_images=0, n_partial=0) if state.stage == TRAIN else state


def _gap(correlations: Any) -> Float[Tensor, ""]:
    return torch.stack([c.gap().mean() for c in correlations]).mean()


def _spread(correlations: tuple[Correlation, ...]) -> Float[Tensor, ""]:
    return torch.stack([row_entropy(c.attention).mean() for c in correlations]).mean()


@dataclass(frozen=True)
class Usual:
    """Mean and spread of each unit, and the mean patch at each position in these units."""

    mean: Float[Tensor, "dim"]
    spread: Float[Tensor, "dim"]
    reference: Float[Tensor, "pos dim"]

    @classmethod
    def of(cls, places: PositionMomentsState) -> "Usual":
        """Return mean, spread and mean patches; constant units get the average spread of others."""
        counts = places.counts.double()[:, None]
        mean = (counts * places.mean).sum(0) / places.n
        around = counts * (places.mean - mean).square()
        spread = ((places.diagonal + around).sum(0) / places.n).sqrt()
        alive = spread > 0
        rest = float(spread[alive].mean()) if bool(alive.any()) else 1.0
        spread = torch.where(alive, spread, torch.full_like(spread, rest))
        return cls(mean, spread, (places.mean - mean) / spread)

    def scaled(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        """Return rows minus the mean, divided by the spread of each unit."""
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        return (wide - self.mean.to(wide)) / self.spread.to(wide)


def whole_images(
    who: Int[Tensor, "row 3"], position: Int[Tensor, "row"], n: int
) -> tuple[Int[Tensor, "image pos"], Int[Tensor, "partial"]]:
    """Return the rows of complete images (each of ``n`` positions once), and sizes of the others.

    Images are sorted by ``who``, in ascending order, so the order of the rows does not matter.
    """
    image = example_numbers(who)
    n_images = int(image.max()) + 1
    inside = (position >= 0) & (position < n)
    cell = image * n + position.clamp(0, n - 1)
    counts = torch.bincount(cell[inside], minlength=n_images * n).reshape(n_images, n)
    outside = torch.bincount(image[~inside], minlength=n_images)
    whole = (counts == 1).all(1) & (outside == 0)
    table = torch.empty(n_images * n, dtype=torch.int64)
    table[cell] = torch.arange(len(position))
    return table.reshape(n_images, n)[whole], (counts.sum(1) + outside)[~whole]


def grid_columns(n: int, columns: int | None) -> int:
    """Return the columns of a grid of ``n`` patches; without ``columns`` the grid must be square.

    Raises
    ------
    InputError
        If ``n`` patches do not fill the grid, or if there are fewer than 2 patches to compare.
    """
    if n < 2:
        raise InputError(
            "FOD: expected at least 2 patches in an image, got one row for each: nothing lies "
            "beside it. Read images with the reducer 'patches', or give position= for each patch."
        )
    found = math.isqrt(n) if columns is None else columns
    if n % found or (columns is None and found * found != n):
        shape = "a square number of patches" if columns is None else f"lines of {columns} patches"
        raise InputError(
            f"FOD: expected {shape} in an image, got {n} positions. Say how many lie in a line "
            "(columns=), and give whole images of one size."
        )
    return found
