"""Unlearning without labels, by the position of the examples' states.

For models with a site whose states determine the answer, such as the features before the head. With
labels at hand ``RandomLabel`` is surer and cheaper.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.edit import Edit, EditContext
from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.core.site import Site
from sonde.engine.progress import Bar
from sonde.engine.steps import Descent, seeded
from sonde.stats.divergence import kl_divergence
from sonde.tap import editing, live_stream, place_of
from sonde.tap.streams.answers import answers_in
from sonde.weights import Examples, Rewrite, RewritePlan
from sonde.weights.tuning import (
    Cycle,
    mean_loss,
    plan_of,
    tuned,
    with_copy,
)

HIDDEN, FIT_RATE = 64, 3e-3
MOST_HELD = 5
"""Most steps of one turn that bring answers back."""


@final
@dataclass(frozen=True)
class LabelAgnosticForget(Rewrite):
    """Move the states of the forget examples away, and keep other states. Trained.

    Two variational autoencoders learn the states at a site, one of the retained and one of the
    forget examples. Then the weights before the site are trained, by turns, to lower two losses:
    ``exp(m_r / (m_r + 1)) - exp(m_f / (m_f + 1))``, where ``m`` is a row's error under its own
    autoencoder, and a contrast of cosines to the original states: retained rows are to stay close,
    forget rows are the negatives. States can drift together and the answers with them, most of all
    if no norm holds the scale of states. So after each turn the answers to retained examples are
    brought back to the original model's answers if they differ by more than ``answer_limit``.

    Range        weights before the site change; weights behind it only with ``repair``.
    Cost         ``epochs`` passes over the forget data, with as many batches of the others, and up
                 to five more where answers drift.
    Assumes      one row of states for each example (tokens and pixels are averaged). No labels.
    Differs      from the reference: means over a batch instead of sums, errors in spreads of the
                 states, norms in eval mode, larger rates for smaller nets, and answers that are
                 held.

    Parameters
    ----------
    site : str or Site
        Whose states are moved: the features before the head.
    latent : int, default=8
        Latent dimensions of the autoencoders.
    fit_steps : int, default=200
        Number of steps of Adam for each autoencoder.
    rate : float, default=2e-3
        Learning rate of Adam for the error of the states.
    align_rate : float, default=2e-3
        Learning rate of Adam for the contrast.
    temperature : float, default=5.0
        Divisor of the cosines, above 0.
    answer_limit : float, default=0.05
        Divergence, in nats, by which the answers to retained examples may drift. Infinity sets no
        limit; a model without logits is trained without a limit.
    epochs : int, default=60
        Number of passes over the examples.
    repair_epochs : int, default=3
        Number of passes over ``repair``, if that is given.
    seed : int, default=0
        Seed of the order of examples.

    References
    ----------
    shen2024labelagnostic
    """

    site: str | Site
    latent: int = 8
    fit_steps: int = 200
    rate: float = 2e-3
    align_rate: float = 2e-3
    temperature: float = 5.0
    answer_limit: float = 0.05
    epochs: int = 60
    repair_epochs: int = 3
    seed: int = 0
    paper: ClassVar[str] = "shen2024labelagnostic"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"site": "10", "epochs": 1, "fit_steps": 3},)

    def __post_init__(self) -> None:
        check_ranges(self, latent="> 0", rate="> 0", align_rate="> 0")
        check_ranges(self, temperature="> 0", answer_limit="> 0", epochs="> 0")

    def reads(self) -> dict[str, Examples]:
        """Read both sides without labels, and a few labelled examples for the repair."""
        sides = dict.fromkeys(("forget", "retain"), Examples())
        return {**sides, "repair": Examples(optional=True)}

    def planned(
        self, model: Model, forget: Inputs, retain: Inputs, repair: Inputs | None
    ) -> RewritePlan:
        """Return the trained weights."""
        original, new = (_States(model, with_copy(model.module), self.site) for _ in range(2))
        with Bar("forget without labels", self.epochs * len(forget)) as bar, torch.enable_grad():
            self._train(original, new, forget, retain, bar)
        new.module.zero_grad(set_to_none=True)
        if repair is not None:
            tuned(
                model,
                *(repair, mean_loss),
                rate=self.align_rate,
                epochs=self.repair_epochs,
                seed=self.seed,
                label="repair",
                start=new.module,
            )
        return plan_of(model, new.module, "label_agnostic_forget")

    def _train(
        self, original: "_States", new: "_States", forget: Inputs, retain: Inputs, bar: Bar
    ) -> None:
        draw = torch.Generator().manual_seed(self.seed)
        sides = Cycle(forget), Cycle(retain)
        before = [[original.of(b).detach() for b in side.batches] for side in sides]
        rows = [torch.cat(side) for side in before]
        with seeded(self.seed):
            own, others = (autoencoder(x, self.latent, self.fit_steps, draw) for x in rows)
        own_states = {
            id(b): x
            for side, states in zip(sides, before, strict=True)
            for b, x in zip(side.batches, states, strict=True)
        }
        weights = [p for p in new.module.parameters() if p.requires_grad]
        push, align = (
            Descent("LabelAgnosticForget", weights, rate) for rate in (self.rate, self.align_rate)
        )
        logits = live_stream(original.model, retain, logits_asked=True).logits_key
        before_site = new.weights(sides[1].batches[0])
        hold = Descent("LabelAgnosticForget", before_site, self.align_rate)
        for _ in range(self.epochs):
            for f, r in _pairs(sides, draw):
                push.step(pushed(own.error(new.of(f)), others.error(new.of(r))))
                near, far = (cosines(new.of(b), own_states[id(b)]) for b in (r, f))
                align.step(contrast(near, far, self.temperature))
                for _ in range(0 if logits is None else MOST_HELD):
                    drift = drifted(original, new, sides[1].next(draw), logits)
                    if float(drift.detach()) <= self.answer_limit:
                        break
                    hold.step(drift)
                bar.advance(len(f))


def pushed(own: Float[Tensor, "row"], others: Float[Tensor, "row2"]) -> Float[Tensor, ""]:
    """Return a loss that falls if forget rows fit worse and other rows fit better."""
    return torch.exp(others / (others + 1)).mean() - torch.exp(own / (own + 1)).mean()


def contrast(
    near: Float[Tensor, "row"], far: Float[Tensor, "row2"], temperature: float
) -> Float[Tensor, ""]:
    """Return the mean ``-log(e^near / (e^near + mean e^far))`` of cosines over a temperature."""
    negatives = torch.logsumexp(far / temperature, 0) - torch.tensor(float(len(far))).log()
    return nn.functional.softplus(negatives - near / temperature).mean()


def cosines(a: Float[Tensor, "row dim"], b: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
    """Return the cosine of each row with the same row of another run."""
    return nn.functional.cosine_similarity(a, b, dim=1)


def drifted(
    original: "_States", new: "_States", batch: InputBatch, logits: str | None
) -> Float[Tensor, ""]:
    """Return the mean divergence of the new answers from the original answers, in nats."""
    with torch.no_grad():
        old = original.answers(batch, logits)
    return kl_divergence(old, new.answers(batch, logits)).mean()


class Autoencoder(nn.Module):
    """A variational autoencoder of rows, scaled by their standard deviation.

    Parameters
    ----------
    rows : Float[Tensor, "row dim"]
        Give the centre and the spread.
    latent : int
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, rows: Float[Tensor, "row dim"], latent: int) -> None:
        super().__init__()
        dim = rows.shape[1]
        self.register_buffer("centre", rows.mean(0))
        self.register_buffer("spread", (rows - rows.mean(0)).square().mean().sqrt().clamp(min=1e-6))
        self.encode = nn.Sequential(
            nn.Linear(dim, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * latent)
        )
        self.decode = nn.Sequential(nn.Linear(latent, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, dim))

    def error(self, rows: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return the mean squared error of each row, without noise, in variances."""
        x = (rows - self.centre) / self.spread
        return (self.decode(self.encode(x).chunk(2, 1)[0]) - x).square().mean(1)

    def loss(self, rows: Float[Tensor, "row dim"], draw: torch.Generator) -> Float[Tensor, ""]:
        """Return the negative evidence lower bound of rows, up to a factor and a constant."""
        x = (rows - self.centre) / self.spread
        mean, log_var = self.encode(x).chunk(2, 1)
        noise = torch.randn(mean.shape, generator=draw).to(mean)
        seen = self.decode(mean + (log_var / 2).exp() * noise)
        divergence = (mean.square() + log_var.exp() - 1 - log_var).sum(1).mean() / 2
        return (seen - x).square().mean() + divergence / x.shape[1]


def autoencoder(
    rows: Float[Tensor, "row dim"], latent: int, steps: int, draw: torch.Generator
) -> Autoencoder:
    """Return a trained autoencoder of rows, frozen."""
    coder = Autoencoder(rows, latent).to(rows)

    def loss(_: int) -> Tensor:
        chosen = torch.randint(len(rows), (min(128, len(rows)),), generator=draw)
        return coder.loss(rows[chosen.to(rows.device)], draw)

    Descent("LabelAgnosticForget", coder.parameters(), FIT_RATE).run(loss, range(steps))
    return coder.requires_grad_(False)


@final
@dataclass(eq=False)
class _Watch(Edit):
    """Record the states of a site, with their autograd graph and unchanged."""

    rows: Tensor | None = None

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        if x.ndim > 2:
            flat = x.flatten(1, -2)
            weight = torch.ones_like(flat[..., :1])
            if context.mask is not None and context.mask.shape == flat.shape[:2]:
                weight = context.mask.to(weight)[..., None]
            self.rows = (weight * flat).sum(1) / weight.sum(1).clamp(min=1)
        else:
            self.rows = x
        return x


class _States:
    """The states of a module at a site, one row for each example of a batch."""

    def __init__(self, model: Model, module: nn.Module, site: str | Site) -> None:
        self.model, self.module, self.site = model, module, site

    def of(self, batch: InputBatch) -> Float[Tensor, "row dim"]:
        """Return the states of a batch, with their autograd graph."""
        watch = _Watch()
        with editing(self.module, watch, self.site, here=True):
            self._run(batch)
        if watch.rows is None or len(watch.rows) != len(batch):
            raise InputError(
                f"LabelAgnosticForget: expected a state for each of {len(batch)} examples at "
                f"{self.site}. Name a site that keeps the examples of a batch."
            )
        return watch.rows

    def answers(self, batch: InputBatch, logits: str | None) -> Float[Tensor, "answer classes"]:
        """Return the log-probabilities of a batch, with their autograd graph."""
        return answers_in(self._run(batch), self.model, self.module, batch, logits).log_p

    def _run(self, batch: InputBatch) -> Any:
        args, kwargs = place_of(self.module, batch).call(batch.args, batch.kwargs)
        return self.module(*args, **kwargs)

    def weights(self, batch: InputBatch) -> list[nn.Parameter]:
        """Return the parameters that affect the states."""
        every = [p for p in self.module.parameters() if p.requires_grad]
        slopes = torch.autograd.grad(self.of(batch).sum(), every, allow_unused=True)
        return [p for p, slope in zip(every, slopes, strict=True) if slope is not None]


def _pairs(
    sides: Iterable[Cycle], draw: torch.Generator
) -> Iterator[tuple[InputBatch, InputBatch]]:
    """Yield a forget batch and a retain batch for every batch of the forget side."""
    forget, retain = sides
    for _ in forget.batches:
        yield forget.next(draw), retain.next(draw)
