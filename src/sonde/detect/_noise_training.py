"""The training of ``SimpleNet``: usual rows against their noisy copies, by steps of a small net."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from sonde.core.errors import InputError
from sonde.core.hashing import fraction
from sonde.core.wording import plural
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
    """Adapter (empty, or weight and bias), and discriminator with its normalising statistics.

    ``judge`` holds the hidden weight and bias, the scale and shift after normalisation, and the
    last weight.
    """

    adapter: Sequence[Tensor]
    judge: Sequence[Tensor]
    centre: Float[Tensor, "hidden"]
    spread: Float[Tensor, "hidden"]

    @classmethod
    def of(cls, weights: Weights | LiveWeights) -> "NoiseDiscriminator":
        """Return the net that has these weights."""
        centre, spread = weights.buffers
        return cls(weights.values[:-N_JUDGE], weights.values[-N_JUDGE:], centre, spread)


@dataclass(frozen=True, kw_only=True)
class NoiseTrainingState(TrainingState):
    """What a training holds between rows; the first walk is for ``moments``."""

    moments: MomentsState
    n_held: int = 0
    steps_in_walk: int = 0


@final
@dataclass(frozen=True, kw_only=True)
class NoiseTraining(Trainer[NoiseTrainingState]):
    """The training of ``SimpleNet``; its parameters are described there."""

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
        """Return the net before the first step."""
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
        """Count rows and those that are held out, and learn the scale of each unit."""
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
        """Return how often a walk repeats its rows, so that all walks together have ``steps``."""
        return max(1, -(-self.steps // max(1, self.passes * state.steps_in_walk)))

    def examples(
        self,
        state: NoiseTrainingState,
        x: Float[Tensor, "row dim"],
        group_draw: Int[Tensor, "row"],
    ) -> tuple[NoiseTrainingState, Examples | None]:
        """Return standardised rows; fewer than two rows are not trained on."""
        held = self._is_held(group_draw).to(x.device)
        if int((~held).sum()) < 2:
            return state, Examples((standardised(x[held], state.moments),), held[held])
        return state, Examples((standardised(x, state.moments),), held)

    def _is_held(self, group_draw: Int[Tensor, "row"]) -> Bool[Tensor, "row"]:
        return fraction(group_draw.cpu()) < (HELD if self.patience else 0.0)

    def loss(
        self, state: NoiseTrainingState, live: LiveWeights, *batch: Tensor, **_: Any
    ) -> tuple[Tensor, tuple[Tensor]]:
        """Return the hinge loss of telling rows from their noisy copies."""
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
        """Change adapter and discriminator, each at its rate."""
        n = len(gradients) - N_JUDGE
        live.adam(gradients[:n], self.adapter_rate, ADAPTER_DECAY, decoupled=True)
        live.adam(gradients[n:], self.rate, DISCRIMINATOR_DECAY, first=n)

    def held_loss(
        self, state: NoiseTrainingState, live: LiveWeights, *batch: Tensor, **_: Any
    ) -> Tensor:
        """Return the loss of held-out rows against fresh noise."""
        (x,), net = batch, NoiseDiscriminator.of(live)
        copies = self._noisy(x, state.moments.scatter > 0, "held", state.walks, state.held.n)
        return hinge(normality(x, net), normality(copies, net), self.margin)

    def _noisy(
        self, x: Float[Tensor, "row dim"], varies: Bool[Tensor, "dim"], *key: int | str
    ) -> Float[Tensor, "row dim"]:
        """Return copies of scaled rows with noise, most of them only in the units that vary.

        In a unit that does not vary, any noise reveals a copy: the net would learn from no other
        unit.
        """
        noise = torch.randn(x.shape, generator=generator(self.seed, *key)).to(x.device)
        everywhere = torch.arange(len(x), device=x.device) % EVERYWHERE == 0
        return x + self.sigma * noise * (varies | everywhere[:, None])

    def close_pass(self, state: NoiseTrainingState) -> NoiseTrainingState:
        """Raise if training shall stop by held-out rows, but no rows are held out."""
        is_first = state.stage == SURVEY
        if is_first and self.patience and not 0 < state.n_held < state.moments.n:
            raise InputError(
                f"SimpleNet: expected about one group in {1 / HELD:.0f} to stop by (patience="
                f"{self.patience}), got {state.n_held} of {plural(state.moments.n, 'row')}. Give "
                "it more "
                "groups, or train for a fixed number of passes (patience=0)."
            )
        return super().close_pass(state)


def standardised(x: Float[Tensor, "row dim"], moments: MomentsState) -> Float[Tensor, "row dim"]:
    """Return rows minus the mean, over the spread of each unit, in single precision."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    return ((wide - moments.mean.to(wide)) / filled_spread(moments).to(wide)).float()


def filled_spread(moments: MomentsState) -> Float[Tensor, "dim"]:
    """Return each unit's standard deviation; for constant units the average of the others."""
    spread = moments.variance.sqrt()
    alive = spread > 0
    rest = float(spread[alive].mean()) if bool(alive.any()) else 1.0
    return torch.where(alive, spread, torch.full_like(spread, rest))


def adapted(x: Float[Tensor, "row dim"], adapter: Any) -> Float[Tensor, "row dim"]:
    """Return the rows after the adapter's linear map, or as they are without one."""
    return functional.linear(x, *adapter) if len(adapter) else x


def judged(
    hidden: Float[Tensor, "row hidden"],
    centre: Float[Tensor, "hidden"],
    spread: Float[Tensor, "hidden"],
    judge: Any,
) -> Float[Tensor, "row"]:
    """Return the discriminator's answer from its hidden units, normalised as given."""
    normal = (hidden - centre) * (spread + EPSILON).rsqrt() * judge[2] + judge[3]
    return (functional.leaky_relu(normal, SLOPE) @ judge[4].T)[:, 0]


def normality(x: Float[Tensor, "row dim"], net: NoiseDiscriminator) -> Float[Tensor, "row"]:
    """Return the answer to scaled rows by the running centre and spread: above 0 = usual."""
    hidden = functional.linear(adapted(x, net.adapter), *net.judge[:2])
    return judged(hidden, net.centre, net.spread, net.judge)


def hinge(
    true: Float[Tensor, "row"], fake: Float[Tensor, "row2"], margin: float
) -> Float[Tensor, ""]:
    """Return how far true rows stay below ``margin`` and fake ones above ``-margin``, averaged."""
    return (margin - true).clamp(min=0).mean() + (margin + fake).clamp(min=0).mean()
