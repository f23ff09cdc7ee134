"""A small network trained in steps to separate normal rows from noisy copies.

For patches of images, and for plain arrays if only usual rows are at hand. It is trained, so it
walks over the rows many times: read a model's states to disk first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from sonde.core.errors import InputError, StateError
from sonde.core.hashing import fraction
from sonde.core.instrument import Detector
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.statistic import Statistic
from sonde.core.wording import plural
from sonde.detect._metric import check_fitted_width
from sonde.stats import Moments, MomentsState
from sonde.stats.training import SURVEY, Examples, Trainer, TrainingState, generator, xavier
from sonde.stats.training_weights import LiveWeights, Weights

SLOPE = 0.2
EPSILON = 1e-5
MOMENTUM = 0.1
DISCRIMINATOR_DECAY = 1e-5
ADAPTER_DECAY = 1e-2
HELD = 0.1
EVERYWHERE = 4
N_JUDGE = 5


@dataclass(frozen=True)
class NoiseDiscriminator:
    """Adapter (empty, or weight and bias), and discriminator with its normalisation.

    ``judge`` holds the hidden weight and bias, the scale and shift after normalisation, and the
    last weight.
    """

    adapter: Sequence[Tensor]
    judge: Sequence[Tensor]
    centre: Float[Tensor, "hidden"]
    spread: Float[Tensor, "hidden"]

    @classmethod
    def of(cls, weights: Weights | LiveWeights) -> "NoiseDiscriminator":
        """Return the network with these weights."""
        centre, spread = weights.buffers
        return cls(weights.values[:-N_JUDGE], weights.values[-N_JUDGE:], centre, spread)


@dataclass(frozen=True, kw_only=True)
class NoiseTrainingState(TrainingState):
    """State of training between rows; the first pass collects ``moments``."""

    moments: MomentsState
    n_held: int = 0
    steps_in_walk: int = 0


@final
@dataclass(frozen=True, kw_only=True)
class NoiseTraining(Trainer[NoiseTrainingState]):
    """Training of ``SimpleNet``, which documents the parameters."""

    sigma: float
    margin: float
    passes: int
    steps: int
    patience: int
    batch: int
    hidden: int
    adapter: bool
    rate: float
    adapter_rate: float
    seed: int

    def start(self, dim: int) -> NoiseTrainingState:
        """Return the network before the first step."""
        source, h = generator("simple net", self.seed), self.hidden
        parts = (xavier(source, dim, dim), torch.zeros(dim)) if self.adapter else ()
        first, last = xavier(source, h, dim), xavier(source, 1, h)
        judge = (first, torch.zeros(h), torch.ones(h), torch.zeros(h), last)
        weights = Weights.of(*parts, *judge, buffers=(torch.zeros(h), torch.ones(h)))
        zero = torch.zeros(dim, dtype=torch.float64)
        return NoiseTrainingState(weights=weights, moments=MomentsState(0, zero, zero))

    def survey(
        self, state: NoiseTrainingState, x: Tensor, group_draw: Tensor
    ) -> NoiseTrainingState:
        """Count rows and held-out rows, and learn each unit's scale."""
        moments = Moments("diag").merge(state.moments, Moments("diag").observe(x.cpu()))
        held = int(self._is_held(group_draw).sum())
        steps = max(1, (len(x) - held) // self.batch) if len(x) > held else 0
        return replace(
            state,
            moments=moments,
            n_held=state.n_held + held,
            steps_in_walk=state.steps_in_walk + steps,
        )

    def times(self, state: NoiseTrainingState) -> int:
        """Return how often a pass repeats its rows, so that all passes total ``steps``."""
        return max(1, -(-self.steps // max(1, self.passes * state.steps_in_walk)))

    def examples(
        self,
        state: NoiseTrainingState,
        x: Float[Tensor, "row dim"],
        group_draw: Int[Tensor, "row"],
    ) -> tuple[NoiseTrainingState, Examples | None]:
        """Return standardised rows; a single row is not used."""
        held = self._is_held(group_draw).to(x.device)
        if int((~held).sum()) < 2:
            return state, Examples((standardised(x[held], state.moments),), held[held])
        return state, Examples((standardised(x, state.moments),), held)

    def _is_held(self, group_draw: Int[Tensor, "row"]) -> Bool[Tensor, "row"]:
        return fraction(group_draw.cpu()) < (HELD if self.patience else 0.0)

    def loss(
        self, state: NoiseTrainingState, live: LiveWeights, *batch: Tensor, **_: Any
    ) -> tuple[Tensor, tuple[Tensor]]:
        """Return the hinge loss of separating rows from their noisy copies."""
        (x,), net = batch, NoiseDiscriminator.of(live)
        copies = self._noisy(x, state.moments.scatter > 0, "noise", live.steps)
        hidden = functional.linear(adapted(torch.cat([x, copies]), net.adapter), *net.judge[:2])
        spread, centre = torch.var_mean(hidden[: len(x)], dim=0, correction=0)
        given = judged(hidden, centre, spread, net.judge)
        loss = hinge(given[: len(x)], given[len(x) :], self.margin)
        unbiased = spread.detach() * (len(x) / (len(x) - 1))
        live.buffers[0].lerp_(centre.detach(), MOMENTUM)
        live.buffers[1].lerp_(unbiased, MOMENTUM)
        return loss, (loss.detach().expand(len(x)),)

    def step(
        self, state: NoiseTrainingState, live: LiveWeights, gradients: Sequence[Tensor]
    ) -> None:
        """Update adapter and discriminator, each with its learning rate."""
        n = len(gradients) - N_JUDGE
        live.adam(gradients[:n], self.adapter_rate, ADAPTER_DECAY, decoupled=True)
        live.adam(gradients[n:], self.rate, DISCRIMINATOR_DECAY, first=n)

    def held_loss(
        self, state: NoiseTrainingState, live: LiveWeights, *batch: Tensor, **_: Any
    ) -> Tensor:
        """Return the loss of held-out rows against new noise."""
        (x,), net = batch, NoiseDiscriminator.of(live)
        copies = self._noisy(x, state.moments.scatter > 0, "held", state.walks, state.held.n)
        return hinge(normality(x, net), normality(copies, net), self.margin)

    def _noisy(
        self, x: Float[Tensor, "row dim"], varies: Bool[Tensor, "dim"], *key: int | str
    ) -> Float[Tensor, "row dim"]:
        """Return scaled rows with noise, most of it only in units that vary.

        In a unit that does not vary, any noise reveals a copy: the net would learn from no other
        unit.
        """
        noise = torch.randn(x.shape, generator=generator(self.seed, *key)).to(x.device)
        everywhere = torch.arange(len(x), device=x.device) % EVERYWHERE == 0
        return x + self.sigma * noise * (varies | everywhere[:, None])

    def close_pass(self, state: NoiseTrainingState) -> NoiseTrainingState:
        """Raise if early stopping is requested but no rows are held out."""
        is_first = state.stage == SURVEY
        if is_first and self.patience and not 0 < state.n_held < state.moments.n:
            raise InputError(
                f"SimpleNet: expected about one group in {1 / HELD:.0f} to stop by "
                f"(patience={self.patience}), got {state.n_held} of "
                f"{plural(state.moments.n, 'row')}. Give more groups, or train for a fixed "
                "number of passes (patience=0)."
            )
        return super().close_pass(state)


def standardised(x: Float[Tensor, "row dim"], moments: MomentsState) -> Float[Tensor, "row dim"]:
    """Return standardised rows in float32."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    return ((wide - moments.mean.to(wide)) / filled_spread(moments).to(wide)).float()


def filled_spread(moments: MomentsState) -> Float[Tensor, "dim"]:
    """Return each unit's standard deviation; constant units get the average of others."""
    spread = moments.variance.sqrt()
    alive = spread > 0
    rest = float(spread[alive].mean()) if bool(alive.any()) else 1.0
    return torch.where(alive, spread, torch.full_like(spread, rest))


def adapted(x: Float[Tensor, "row dim"], adapter: Any) -> Float[Tensor, "row dim"]:
    """Return the rows after the adapter's linear map, if there is one."""
    return functional.linear(x, *adapter) if len(adapter) else x


def judged(
    hidden: Float[Tensor, "row hidden"],
    centre: Float[Tensor, "hidden"],
    spread: Float[Tensor, "hidden"],
    judge: Any,
) -> Float[Tensor, "row"]:
    """Return the discriminator's output from its normalised hidden units."""
    normal = (hidden - centre) * (spread + EPSILON).rsqrt() * judge[2] + judge[3]
    return (functional.leaky_relu(normal, SLOPE) @ judge[4].T)[:, 0]


def normality(x: Float[Tensor, "row dim"], net: NoiseDiscriminator) -> Float[Tensor, "row"]:
    """Return the output for scaled rows by running mean and deviation: above 0 = normal."""
    hidden = functional.linear(adapted(x, net.adapter), *net.judge[:2])
    return judged(hidden, net.centre, net.spread, net.judge)


def hinge(
    true: Float[Tensor, "row"], fake: Float[Tensor, "row2"], margin: float
) -> Float[Tensor, ""]:
    """Return the mean hinge loss: true rows below ``margin``, fake rows above ``-margin``."""
    return (margin - true).clamp(min=0).mean() + (margin + fake).clamp(min=0).mean()


CHUNK = 4096


@final
@dataclass(frozen=True, kw_only=True)
class SimpleNetScorer(Scorer):
    """Minus the discriminator's output; ``value`` is the last or lowest held-out loss.

    Scale, adapter, first layer and normalisation are one linear map of the centred row.
    """

    mean: Float[Tensor, "dim"]
    weight: Float[Tensor, "hidden dim"]
    bias: Float[Tensor, "hidden"]
    last: Float[Tensor, "hidden"]
    passes: int

    def score(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return each row's fake score: above 0 if noisy copies outweigh normal rows."""
        check_fitted_width("SimpleNet", x, len(self.mean))
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        mean, weight, bias, last = (t.to(wide) for t in self._map)
        out = wide.new_empty(len(x))
        for start in range(0, len(x), CHUNK):
            hidden = functional.linear(wide[start : start + CHUNK] - mean, weight, bias)
            out[start : start + CHUNK] = -(functional.leaky_relu(hidden, SLOPE) @ last)
        return infinite_where_nonfinite(out, x)

    @property
    def _map(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.mean, self.weight, self.bias, self.last


@final
@dataclass(frozen=True)
class SimpleNet(Detector):
    """Score of a small network that separates normal rows from noisy copies of them.

    Usual rows and their copies with normal noise are told apart by one hidden layer; what lies off
    the usual rows in any direction falls to the side of the copies. Rows are scaled to variance 1
    in each unit and pass a linear adapter, ``a(z) = W z + b``; the score is ``-D(a(z))``, and the
    loss averages ``max(0, margin - D(a(z))) + max(0, margin + D(a(z + sigma e)))``, ``e`` fresh in
    each step.

    Range        (-inf, inf), dimensionless; higher = more unusual, 0 = as likely a copy.
    Cost         1 + ``passes`` walks over the rows, ``steps`` or more; state
                 12 (dim^2 + hidden dim) bytes; O(hidden dim) per row.
    Assumes      reducer ``patches``; what is unusual lies off the usual rows by about ``sigma``
                 spreads or more.
    Differs      from the paper: rows are scaled first, so ``sigma`` does not depend on the
                 backbone; noise is added before the adapter, which could else map all rows to a
                 plane and know copies by leaving it, and a quarter of the copies alone has noise in
                 units that never varied; normalisation in the net takes its centre and spread from
                 usual rows alone, in training as in use; never stopped by unusual data; shuffled
                 within the rows at hand, not over all.

    Parameters
    ----------
    sigma : float, default=0.3
        Standard deviation of the noise, in those of a unit.
    margin : float, default=0.5
        Answers beyond it cost nothing.
    passes : int, default=40
        Walks over the rows in training (160 in the paper), at most.
    steps : int, default=500
        Least steps of training in all walks: a walk goes several times over the rows that come
        together if there are too few of them.
    patience : int, default=0
        Stop once the loss on a tenth of the groups, held out, has not fallen for this number of
        passes, and keep the net with the least loss; 0 trains for ``passes``.
    batch : int, default=1024
        Rows in a step; less where fewer arrive together (a unit is 256 examples).
    hidden : int, default=1024
        Hidden units of the discriminator.
    adapter : bool, default=True
        Whether there is an adapter.
    rate, adapter_rate : float, default=2e-4, 1e-4
        Step sizes of discriminator (Adam) and adapter (AdamW).
    seed : int, default=0
        Seed of the initial weights, of the noise and of the order of rows.

    Examples
    --------
    >>> x = torch.randn(512, 2, generator=torch.Generator().manual_seed(0))
    >>> scorer = SimpleNet(passes=30, steps=1, hidden=64, batch=128, rate=1e-2).fit(x)
    >>> scorer.score(torch.tensor([[0.0, 0.0], [6.0, -6.0]])).sign().tolist()
    [-1.0, 1.0]

    References
    ----------
    liu2023simplenet
    """

    sigma: float = 0.3
    margin: float = 0.5
    passes: int = 40
    steps: int = 500
    patience: int = 0
    batch: int = 1024
    hidden: int = 1024
    adapter: bool = True
    rate: float = 2e-4
    adapter_rate: float = 1e-4
    seed: int = 0
    paper: ClassVar[str] = "liu2023simplenet"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"passes": 12, "steps": 1, "hidden": 32, "batch": 32, "rate": 3e-2},
        {
            "passes": 12,
            "steps": 1,
            "hidden": 32,
            "batch": 32,
            "adapter": False,
            "patience": 9,
            "rate": 3e-2,
        },
    )

    def __post_init__(self) -> None:
        positive = (self.sigma, self.margin, self.rate, self.adapter_rate)
        counts = (self.passes, self.steps, self.hidden, self.batch - 1, self.patience + 1)
        if not all(0 < v < math.inf for v in positive) or min(counts) < 1:
            raise InputError(
                "SimpleNet: expected sigma, margin, rate, adapter_rate above 0, passes, steps and "
                f"hidden of at least 1, batch of at least 2, patience of at least 0, got {self}."
            )

    def reading(self) -> dict[str, Any]:
        """Return the reading of a row per patch."""
        return {"reducer": "patches"}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for the training state."""
        training = NoiseTraining(
            sigma=self.sigma,
            margin=self.margin,
            passes=self.passes,
            steps=self.steps,
            patience=self.patience,
            batch=self.batch,
            hidden=self.hidden,
            adapter=self.adapter,
            rate=self.rate,
            adapter_rate=self.adapter_rate,
            seed=self.seed,
        )
        return {"trained": training}

    def result(self, trained: NoiseTrainingState) -> SimpleNetScorer:
        """Fold the trained network into two linear maps."""
        weights = trained.best or trained.weights
        steps = weights.steps
        if trained.moments.n < 2:
            raise StateError(
                "SimpleNet: expected at least 2 rows to train on, got "
                f"{plural(trained.moments.n, 'row')}."
            )
        trained.require_trained("SimpleNet")
        loss = trained.best_loss if trained.best is not None else trained.losses[0].average
        weight, bias, last = _folded(NoiseDiscriminator.of(weights), trained.moments)
        dead = bool((trained.moments.scatter == 0).all())
        return SimpleNetScorer(
            value=loss,
            n=trained.moments.n,
            range=(-math.inf, math.inf),
            flags=("dead",) if dead else (),
            conventions={
                "value": "loss on held-out rows" if trained.best else "loss of the last pass",
                "passes": trained.walks - 1,
                "steps": steps,
                "sigma": self.sigma,
                "se": "not given for a scorer: calibrate its scores",
            },
            passes=trained.walks - 1,
            mean=trained.moments.mean,
            weight=weight,
            bias=bias,
            last=last,
        )


def _folded(net: NoiseDiscriminator, moments: MomentsState) -> tuple[Tensor, Tensor, Tensor]:
    """Return the maps before the activation as one weight and bias, and the last weight."""
    first, offset, scale, shift, last = (v.double() for v in net.judge)
    if net.adapter:
        weight, bias = (v.double() for v in net.adapter)
        first, offset = first @ weight, offset + first @ bias
    gain = (net.spread.double() + EPSILON).rsqrt() * scale
    bias = gain * (offset - net.centre.double()) + shift
    return gain[:, None] * first / filled_spread(moments), bias, last[0]
