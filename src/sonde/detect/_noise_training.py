"""The training of ``SimpleNet``: usual rows against their noisy copies, by steps of a small net."""

import math
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from sonde.core.errors import InputError
from sonde.core.hashing import fraction
from sonde.core.state import State, map_tensors
from sonde.core.statistic import Learner
from sonde.core.wording import plural
from sonde.detect._training import Tally, Weights, generator, minibatches, xavier
from sonde.stats import Moments, MomentsState

SLOPE = 0.2
EPSILON = 1e-5
MOMENTUM = 0.1
DISCRIMINATOR_DECAY = 1e-5
ADAPTER_DECAY = 1e-2
HELD = 0.1
EVERYWHERE = 4


@dataclass(frozen=True)
class Net(State):
    """Adapter (nothing, or weight and bias) and discriminator with what it normalises by.

    ``discriminator`` holds the hidden weight and bias, the scale and shift after normalisation, and
    the last weight.
    """

    adapter: Weights
    discriminator: Weights
    centre: Float[Tensor, "hidden"]
    spread: Float[Tensor, "hidden"]


@dataclass(frozen=True)
class NoiseTrainingState(State):
    """What a training holds between rows: ``walks`` are done, the first one for ``moments``."""

    walks: int
    moments: MomentsState
    net: Net
    loss: Tally
    held: Tally
    n_held: int
    best: Net | None
    best_loss: float
    waited: int


@final
@dataclass(frozen=True)
class NoiseTraining(Learner[NoiseTrainingState]):
    """The training of ``SimpleNet``; its parameters are described there."""

    sigma: float
    margin: float
    passes: int
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
        judge = Weights.of(first, torch.zeros(h), torch.ones(h), torch.zeros(h), last)
        net = Net(Weights.of(*parts), judge, torch.zeros(h), torch.ones(h))
        zero = torch.zeros(dim, dtype=torch.float64)
        moments = MomentsState(0, zero, zero)
        return NoiseTrainingState(0, moments, net, Tally(), Tally(), 0, None, math.inf, 0)

    def n_passes(self) -> int:
        """Return one walk for the scale of each unit, then those of the training."""
        return 1 + self.passes

    def update(
        self,
        state: NoiseTrainingState,
        x: Float[Tensor, "row dim"],
        group_draw: Int[Tensor, "row"],
    ) -> NoiseTrainingState:
        """Count rows in the first walk, then train on them, and judge those that are held out."""
        held = fraction(group_draw.cpu()) < (HELD if self.patience else 0.0)
        if state.walks == 0:
            counted = Moments("diag").observe(x.cpu())
            moments = Moments("diag").merge(state.moments, counted)
            return replace(state, moments=moments, n_held=state.n_held + int(held.sum()))
        state = map_tensors(state, lambda t: t.to(x.device))
        x = standardised(x, state.moments)
        held = held.to(x.device)
        return self._judged(self._trained(state, x[~held]), x[held])

    def _trained(
        self, state: NoiseTrainingState, x: Float[Tensor, "row dim"]
    ) -> NoiseTrainingState:
        if len(x) < 2:
            return state
        net, loss, varies = state.net, state.loss, state.moments.scatter > 0
        order = generator("order", self.seed, net.discriminator.steps)
        for rows in minibatches(len(x), self.batch, order):
            net, found = self._step(net, x[rows.to(x.device)], varies)
            loss = loss.plus(found * len(rows), len(rows))
        return replace(state, net=net, loss=loss)

    def _step(
        self, net: Net, x: Float[Tensor, "row dim"], varies: Bool[Tensor, "dim"]
    ) -> tuple[Net, float]:
        copies = self._noisy(x, varies, "noise", net.discriminator.steps)
        with torch.enable_grad():
            adapter, judge = net.adapter.live(), net.discriminator.live()
            hidden = functional.linear(adapted(torch.cat([x, copies]), adapter), *judge[:2])
            spread, centre = torch.var_mean(hidden[: len(x)], dim=0, correction=0)
            given = judged(hidden, centre, spread, judge)
            loss = hinge(given[: len(x)], given[len(x) :], self.margin)
            gradients = torch.autograd.grad(loss, [*adapter, *judge])
        n = len(adapter)
        stepped = net.adapter.stepped(gradients[:n], self.adapter_rate, ADAPTER_DECAY, True)
        trained = net.discriminator.stepped(gradients[n:], self.rate, DISCRIMINATOR_DECAY)
        unbiased = spread.detach() * (len(x) / (len(x) - 1))
        running = net.centre.lerp(centre.detach(), MOMENTUM), net.spread.lerp(unbiased, MOMENTUM)
        return Net(stepped, trained, *running), float(loss.detach())

    def _judged(self, state: NoiseTrainingState, x: Float[Tensor, "row dim"]) -> NoiseTrainingState:
        """Add the loss of held-out rows against fresh noise."""
        if len(x) == 0:
            return state
        net, seen = state.net, state.held.n
        copies = self._noisy(x, state.moments.scatter > 0, "held", state.walks, seen)
        loss = hinge(normality(x, net), normality(copies, net), self.margin)
        return replace(state, held=state.held.plus(float(loss) * len(x), len(x)))

    def _noisy(
        self, x: Float[Tensor, "row dim"], varies: Bool[Tensor, "dim"], *key: int | str
    ) -> Float[Tensor, "row dim"]:
        """Return copies of scaled rows with noise, most of them only in the units that vary.

        In a unit that does not vary any noise gives a copy away, and no other unit would be learned
        from.
        """
        noise = torch.randn(x.shape, generator=generator(self.seed, *key)).to(x.device)
        everywhere = torch.arange(len(x), device=x.device) % EVERYWHERE == 0
        return x + self.sigma * noise * (varies | everywhere[:, None])

    def close_pass(self, state: NoiseTrainingState) -> NoiseTrainingState:
        """Keep the net of the least loss on held-out rows, where training stops by that."""
        if state.walks == 0 and self.patience and not 0 < state.n_held < state.moments.n:
            raise InputError(
                f"SimpleNet: expected about one group in {1 / HELD:.0f} to stop by (patience="
                f"{self.patience}), got {state.n_held} of {plural(state.moments.n, 'row')}. Give "
                "it more "
                "groups, or train for a fixed number of passes (patience=0)."
            )
        state = replace(state, walks=state.walks + 1)
        if state.walks == 1 or not self.patience:
            return replace(state, loss=Tally() if state.walks <= self.passes else state.loss)
        better = state.held.average < state.best_loss
        return replace(
            state,
            loss=Tally(),
            held=Tally(),
            best=state.net if better else state.best,
            best_loss=state.held.average if better else state.best_loss,
            waited=0 if better else state.waited + 1,
        )

    def is_trained(self, state: NoiseTrainingState) -> bool:
        """Return whether the loss on held-out rows has not fallen for ``patience`` walks."""
        return 0 < self.patience <= state.waited


def standardised(x: Float[Tensor, "row dim"], moments: MomentsState) -> Float[Tensor, "row dim"]:
    """Return rows minus the mean, over the spread of each unit, in single precision."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    return ((wide - moments.mean.to(wide)) / spread_of(moments).to(wide)).float()


def spread_of(moments: MomentsState) -> Float[Tensor, "dim"]:
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


def normality(x: Float[Tensor, "row dim"], net: Net) -> Float[Tensor, "row"]:
    """Return the answer to scaled rows by the running centre and spread: above 0 = usual."""
    judge = net.discriminator.values
    hidden = functional.linear(adapted(x, net.adapter.values), *judge[:2])
    return judged(hidden, net.centre, net.spread, judge)


def hinge(
    true: Float[Tensor, "row"], fake: Float[Tensor, "row2"], margin: float
) -> Float[Tensor, ""]:
    """Return how far true rows stay below ``margin`` and fake ones above ``-margin``, averaged."""
    return (margin - true).clamp(min=0).mean() + (margin + fake).clamp(min=0).mean()
