"""Score patches that are reconstructed badly or resemble normal patches at other positions.

For aligned images of one kind of object. It is trained, so it walks over the images many times:
read a model's states to disk first.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError, ShapeError
from sonde.core.instrument import Detector
from sonde.core.reduction import OWN, Reduced, reduce_scores
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.state import size_bytes
from sonde.core.statistic import Statistic
from sonde.detect._grid_net import Correlation, GridNet, Rebuilt, row_entropy
from sonde.detect._metric import check_fitted_width
from sonde.stats.position_moments import PositionMoments, PositionMomentsState
from sonde.stats.sequences import example_numbers
from sonde.stats.training import SURVEY, TRAIN, Examples, Trainer, TrainingState
from sonde.stats.training_weights import LiveWeights

ALL = 1 << 40
PARTIAL = 0.1


@dataclass(frozen=True, kw_only=True)
class GridTrainingState(TrainingState):
    """State of training between images; its loss is one image's error."""

    places: PositionMomentsState
    n_images: int = 0
    n_partial: int = 0


@final
@dataclass(frozen=True)
class GridTraining(Trainer[GridTrainingState]):
    """Training of ``FOD``, which documents the parameters."""

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
        """Return the network before the first step."""
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
        """Learn the means at each position."""
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
        """Return complete images, each unit in standard deviations."""
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
        """Return the loss of the images, and the reconstruction error of each image."""
        (images,) = batch
        reference = Usual.of(state.places).reference.float()
        columns = grid_columns(images.shape[1], self.columns)
        rebuilt = self.net(live.values, images, reference, columns)
        error = rebuilt.error(images)
        loss = 2 * error.mean() + self._targets(rebuilt) + self._attentions(rebuilt)
        return loss, (error.mean(1),)

    def _targets(self, rebuilt: Rebuilt) -> Float[Tensor, ""]:
        """Return the loss that moves targets to the intra and away from the inter attention."""
        intra = _gap(c.attention_fixed() for c in rebuilt.intra)
        return self.divergence * (intra - _gap(c.attention_fixed() for c in rebuilt.inter))

    def _attentions(self, rebuilt: Rebuilt) -> Float[Tensor, ""]:
        """Return the loss that moves intra attention from, and inter attention to, its target."""
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
                f"FOD: expected {len(state.places.counts)} patches of every image, but "
                f"{state.n_partial} of {state.n_images + state.n_partial} images have fewer. "
                "Give images of one size, with all patches of an image together and finite."
            )
        state = super().close_pass(state)
        return replace(state, n_images=0, n_partial=0) if state.stage == TRAIN else state


def _gap(correlations: Any) -> Float[Tensor, ""]:
    return torch.stack([c.gap().mean() for c in correlations]).mean()


def _spread(correlations: tuple[Correlation, ...]) -> Float[Tensor, ""]:
    return torch.stack([row_entropy(c.attention).mean() for c in correlations]).mean()


@dataclass(frozen=True)
class Usual:
    """Mean and standard deviation of each unit, and the standardised mean patch per position."""

    mean: Float[Tensor, "dim"]
    spread: Float[Tensor, "dim"]
    reference: Float[Tensor, "pos dim"]

    @classmethod
    def of(cls, places: PositionMomentsState) -> "Usual":
        """Return mean, standard deviation and mean patches; constant units get the average."""
        counts = places.counts.double()[:, None]
        mean = (counts * places.mean).sum(0) / places.n
        around = counts * (places.mean - mean).square()
        spread = ((places.diagonal + around).sum(0) / places.n).sqrt()
        alive = spread > 0
        rest = float(spread[alive].mean()) if bool(alive.any()) else 1.0
        spread = torch.where(alive, spread, torch.full_like(spread, rest))
        return cls(mean, spread, (places.mean - mean) / spread)

    def scaled(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        """Return rows minus the mean, divided by the standard deviation of each unit."""
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
    """Return the columns of a grid of ``n`` patches, square unless ``columns`` is given.

    Raises
    ------
    InputError
        If ``n`` patches do not fill the grid, or if there are fewer than 2 patches to compare.
    """
    if n < 2:
        raise InputError(
            "FOD: expected at least 2 patches in an image, got one row for each image, so "
            "patches have no neighbours. Read images with the reducer 'patches', or give "
            "position= for each patch."
        )
    width = math.isqrt(n) if columns is None else columns
    if n % width or (columns is None and width * width != n):
        shape = "a square number of patches" if columns is None else f"lines of {columns} patches"
        raise InputError(
            f"FOD: expected {shape} in an image, got {n} positions. Pass the number of patches "
            "in a line (columns=), and whole images of equal size."
        )
    return width


CHUNK_ENTRIES = 1 << 22


@final
@dataclass(frozen=True, kw_only=True)
class FODScorer(Scorer):
    """Error and displacement of patches; ``value`` is the error of the last training pass."""

    usual: Usual
    net: GridNet
    weights: tuple[Tensor, ...]
    columns: int
    relative: bool

    def score(
        self,
        x: Float[Tensor, "row dim"],
        ids: Int[Tensor, "row 2"],
        occurrence: Int[Tensor, "row"],
        position: Int[Tensor, "row"],
    ) -> Float[Tensor, "row"]:
        """Return the score of each patch of complete images, in any order of rows."""
        error, weight = self._terms(x, ids, occurrence, position, self.relative)
        return infinite_where_nonfinite(error * weight, x)

    def terms(
        self,
        x: Float[Tensor, "row dim"],
        ids: Int[Tensor, "row 2"],
        occurrence: Int[Tensor, "row"],
        position: Int[Tensor, "row"],
    ) -> tuple[Float[Tensor, "row"], Float[Tensor, "row"]]:
        """Return each patch's reconstruction error, and its attention's distance from its place."""
        return self._terms(x, ids, occurrence, position, False)

    def reduced(
        self,
        scores: Float[Tensor, "row"],
        example: Int[Tensor, "_row"],
        how: str,
        *columns: Any,
        **_: Any,
    ) -> Reduced:
        """Return the score of each image, by default its most anomalous patch's."""
        return reduce_scores(scores, example, "max" if how == OWN else how)

    def _terms(
        self, x: Tensor, ids: Tensor, occurrence: Tensor, position: Tensor, relative: bool
    ) -> tuple[Tensor, Tensor]:
        check_fitted_width("FOD", x, len(self.usual.mean))
        scaled = self.usual.scaled(x)
        out = scaled.new_zeros(2, len(x))
        if len(x) == 0:
            return out[0], out[1]
        reference = self.usual.reference.to(scaled)
        rows = self._images(ids, occurrence, position)
        usual = reference[position.to(x.device)]
        scaled = torch.where(torch.isfinite(scaled).all(1, keepdim=True), scaled, usual)
        step = max(1, CHUNK_ENTRIES // (self.net.heads * len(reference) ** 2))
        with torch.no_grad():
            for part in rows.to(x.device).split(step):
                weights = [w.to(scaled) for w in self.weights]
                rebuilt = self.net(weights, scaled[part], reference, self.columns)
                gap = rebuilt.displacement()
                if relative:
                    nearness = torch.softmax(-gap, dim=1)
                    gap = nearness.amax(1, keepdim=True) - nearness
                out[:, part] = torch.stack([rebuilt.error(scaled[part]), gap])
        return out[0], out[1]

    def _images(
        self, ids: Tensor, occurrence: Tensor, position: Tensor
    ) -> Int[Tensor, "image pos"]:
        n = len(self.usual.reference)
        who = torch.column_stack([ids, occurrence]).cpu()
        rows, partial = whole_images(who, position.cpu(), n)
        if len(partial):
            raise ShapeError(
                f"FOD.score: expected {n} patches of every image (as fitted), each position "
                f"once, got {int(partial[0])} in an image. Score whole images of the "
                "fitted size, not rows."
            )
        return rows


@final
@dataclass(frozen=True)
class FOD(Detector):
    """Reconstruction error of each patch, times its dissimilarity to normal patches at its place.

    A small transformer rebuilds the patches of an image from each other and from the mean patch at
    each position. Usual patches attend to the references around their own place. A patch that looks
    like another place attends to that place, and so stands out even if it is normal by itself. With
    ``d`` the divergence, summed both ways, of that attention from a Gaussian around the patch, and
    ``q`` the softmax of ``-d`` over the image, the score is ``error (max q - q)``, else
    ``error d``.

    Range        [0, inf), dimensionless; higher = more unusual. An image's score is its largest.
    Cost         1 + ``passes`` walks; state about 12 (2 dim + 30 layers width) width bytes;
                 O(layers (positions + width) width) per patch.
    Assumes      reducer ``patches``; images of one size, aligned, that arrive whole. ``relative``
                 compares patches of one image, so an image that is unusual everywhere looks usual.
    Differs      from the paper: both branches and the output maps of the attentions take part;
                 units are scaled; no encoding of positions, so a patch's place is known by its
                 looks; both phases make one step; trained for a fixed number of passes.

    Parameters
    ----------
    relative : bool, default=True
        Weigh by the place within the image's patches, or by the divergence itself.
    columns : int or None, default=None
        Patches in a line of the image; None: the grid is square.
    width : int, default=256, 8, 3
        Number of features of the transformer's states.
    heads : int, default=256, 8, 3
        Number of attention heads of the transformer.
    layers : int, default=256, 8, 3
        Number of layers of the transformer.
    divergence, entropy : float, default=0.5, 0.5
        Weights of the divergences from the targets and of the entropies of the attentions.
    passes : int, default=100
        Walks over the images in training.
    batch : int, default=1
        Images in a step.
    rate : float, default=1e-4
        Step size of Adam.
    max_positions : int, default=4096
        Positions from here on are refused.
    seed : int, default=0
        Seed of the initial weights and of the order of rows.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]]).repeat(8, 1)
    >>> who, place = torch.arange(8).repeat_interleave(4), torch.arange(4).repeat(8)
    >>> detector = FOD(width=8, heads=2, layers=1, passes=30, batch=8, rate=2e-2)
    >>> scorer = detector.fit(x, ids=who, position=place)
    >>> image, which = torch.tensor([[0.0], [1.0], [2.0], [0.0]]), torch.zeros(4, 2).long()
    >>> scorer.terms(image, which, which[:, 0], place[:4])[1].argmax().item()
    3

    References
    ----------
    yao2023fod
    """

    relative: bool = True
    columns: int | None = None
    width: int = 256
    heads: int = 8
    layers: int = 3
    divergence: float = 0.5
    entropy: float = 0.5
    passes: int = 100
    batch: int = 1
    rate: float = 1e-4
    max_positions: int = 4096
    seed: int = 0
    reduces: ClassVar[bool] = True
    whole_examples: ClassVar[bool] = True
    paper: ClassVar[str] = "yao2023fod"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"width": 8, "heads": 2, "layers": 1, "passes": 3, "batch": 8, "rate": 1e-2},
        {"width": 8, "heads": 1, "layers": 2, "passes": 2, "batch": 8, "relative": False},
    )

    def __post_init__(self) -> None:
        counts = (self.width, self.heads, self.layers, self.passes, self.batch, self.max_positions)
        lines = 1 if self.columns is None else self.columns
        weights = (self.divergence, self.entropy, self.rate)
        wrong = min(*counts, lines) < 1 or not all(0 <= w < math.inf for w in weights)
        if wrong or self.rate == 0 or self.width % self.heads:
            raise InputError(
                "FOD: expected width, heads, layers, passes, batch, columns of at least 1, heads "
                "that divide width, divergence and entropy of at least 0, rate above 0, got "
                f"{self}."
            )

    def reading(self) -> dict[str, Any]:
        """Return the reading of a row per patch."""
        return {"reducer": "patches"}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for the training state."""
        training = GridTraining(
            GridNet(self.width, self.heads, self.layers),
            self.columns,
            self.divergence,
            self.entropy,
            self.passes,
            self.batch,
            self.rate,
            self.max_positions,
            self.seed,
        )
        return {"trained": training}

    def result(self, trained: GridTrainingState) -> FODScorer:
        """Return the scorer of the trained network."""
        places, steps = trained.places, trained.weights.steps
        trained.require_trained("FOD")
        dead = bool((places.diagonal == 0).all())
        return FODScorer(
            value=trained.losses[0].average,
            n=places.n,
            range=(0.0, math.inf),
            flags=("dead",) if dead else (),
            conventions={
                "value": "error of the last pass",
                "images": trained.n_images,
                "images left out": trained.n_partial,
                "steps": steps,
                "divergence": "sum of both directions, in nats; mean over heads and layers",
                "se": "not given for a scorer: calibrate its scores",
            },
            usual=Usual.of(places),
            net=GridNet(self.width, self.heads, self.layers),
            weights=trained.weights.values,
            columns=grid_columns(len(places.counts), self.columns),
            relative=self.relative,
        )
