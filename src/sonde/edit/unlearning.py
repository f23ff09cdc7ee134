"""Unlearning by training: the baselines for other unlearning methods.

``Retrain`` is the gold standard: the model that never saw the examples. The others train a copy.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.tap import cross_entropy
from sonde.weights import Examples, Rewrite, RewritePlan
from sonde.weights.tuning import (
    Cycle,
    Trainee,
    each_batch,
    mean_loss,
    plan_of,
    require_truth,
    row_losses,
    tuned,
    with_copy,
)

SIDES = ("forget", "retain")
MOST_ASKED = 64
"""Times in an epoch that the loss of all forget examples is computed."""


@final
@dataclass(frozen=True)
class GradientAscent(Rewrite):
    """Raise the loss of the forget examples, and keep the loss of other examples low. Trained.

    Minimises ``retain_weight L(retain) - L(forget)``, cross-entropies in nats, until the loss of
    the forget examples passes ``stop_loss``: the loss grows without bound and would break the
    model.

    Range        any weight may change.
    Cost         ``epochs`` passes over the forget data, with as many batches of the others; once a
                 batch's loss is half of ``stop_loss``, up to 64 further forward passes an epoch.
    Assumes      labels, or texts.
    Differs      from plain ascent: descends on the others meanwhile, and stops.

    Parameters
    ----------
    rate : float, default=3e-4
        Learning rate of Adam.
    epochs : int, default=20
        At most.
    retain_weight : float, default=1.0
        0 is plain ascent.
    stop_loss : float, default=3.0
        Mean loss of the forget examples at which it stops, nats; guessing among ten is 2.3.
    seed : int, default=0
        Seed of the order of examples.

    References
    ----------
    jang2023unlearning
    """

    rate: float = 3e-4
    epochs: int = 20
    retain_weight: float = 1.0
    stop_loss: float = 3.0
    seed: int = 0
    paper: ClassVar[str] = "jang2023unlearning"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"epochs": 2},)

    def __post_init__(self) -> None:
        check_ranges(self, rate="> 0", epochs="> 0")

    def reads(self) -> dict[str, Examples]:
        """Read the examples to forget and those to keep."""
        return dict.fromkeys(SIDES, Examples())

    def planned(self, model: Model, forget: Inputs, retain: Inputs) -> RewritePlan:
        """Return the trained weights."""
        require_truth("GradientAscent", model, forget=forget, retain=retain)
        others, limit = Cycle(retain), _Limit(forget, self.stop_loss)

        def objective(trainee: Trainee, batch: InputBatch) -> Tensor:
            kept = mean_loss(trainee, others.next(trainee.draw))
            forgotten = mean_loss(trainee, batch)
            limit.note(len(batch), float(forgotten.detach()))
            return self.retain_weight * kept - forgotten

        new = tuned(
            model,
            forget,
            objective,
            rate=self.rate,
            epochs=self.epochs,
            seed=self.seed,
            label="gradient ascent",
            stop=limit.is_passed,
        )
        return _planned(model, new, "gradient_ascent", forget, retain)


@final
@dataclass(frozen=True)
class RandomLabel(Rewrite):
    """Train wrong answers on the forget examples, and right answers on the others. Trained.

    Minimises ``L(forget, wrong answers) + retain_weight L(retain)``.

    Range        any weight may change.
    Cost         ``epochs`` passes over the forget data, with as many batches of the others.
    Assumes      at least two classes.

    Parameters
    ----------
    rate : float, default=1e-3
        Learning rate of Adam.
    epochs : int, default=10
        Number of passes over the examples.
    retain_weight : float, default=1.0
        Weight of the loss of the retained examples.
    seed : int, default=0
        Draws the wrong answers and the order.

    References
    ----------
    golatkar2020eternal
    """

    rate: float = 1e-3
    epochs: int = 10
    retain_weight: float = 1.0
    seed: int = 0
    paper: ClassVar[str] = "golatkar2020eternal"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"epochs": 2},)

    def __post_init__(self) -> None:
        check_ranges(self, rate="> 0", epochs="> 0")

    def reads(self) -> dict[str, Examples]:
        """Read the examples to forget and those to keep."""
        return dict.fromkeys(SIDES, Examples())

    def planned(self, model: Model, forget: Inputs, retain: Inputs) -> RewritePlan:
        """Return the trained weights."""
        require_truth("RandomLabel", model, forget=forget, retain=retain)
        others, wrong = Cycle(retain), dict[tuple[bytes, ...], Tensor]()

        def objective(trainee: Trainee, batch: InputBatch) -> Tensor:
            answers, key = trainee.losses.answers(batch), tuple(batch.keys)
            if key not in wrong:
                n_classes = answers.log_p.shape[1]
                step = torch.randint(1, n_classes, answers.truth.shape, generator=trainee.draw)
                wrong[key] = torch.where(answers.truth >= 0, (answers.truth + step) % n_classes, -1)
            losses = cross_entropy(replace(answers, truth=wrong[key]), len(batch))
            taught = losses.losses.sum() / max(1, int(losses.known.sum()))
            return taught + self.retain_weight * mean_loss(trainee, others.next(trainee.draw))

        new = tuned(
            model,
            forget,
            objective,
            rate=self.rate,
            epochs=self.epochs,
            seed=self.seed,
            label="random labels",
        )
        return _planned(model, new, "random_label", forget, retain)


@final
@dataclass(frozen=True)
class NegPreference(Rewrite):
    """Make the forget examples less likely than under the original model. Trained.

    Minimises ``-(2 / beta) mean log sigmoid(-beta (log p - log p_original)) + retain_weight
    L(retain)``, log-probabilities summed over the answers of an example. Unlike the gradient of
    ascent, its gradient fades once an answer is unlikely; as ``beta`` goes to 0, it becomes ascent.

    Range        any weight may change.
    Cost         ``epochs`` passes over the forget data, with as many batches of the others, and one
                 forward of the original.
    Assumes      labels, or texts.

    Parameters
    ----------
    beta : float, default=0.1
        Inverse temperature of the preference, above 0.
    rate : float, default=3e-4
        Learning rate of Adam.
    epochs : int, default=20
        Number of passes over the examples.
    retain_weight : float, default=1.0
        Weight of the loss of the retained examples.
    seed : int, default=0
        Seed of the order of examples.

    References
    ----------
    zhang2024npo
    """

    beta: float = 0.1
    rate: float = 3e-4
    epochs: int = 20
    retain_weight: float = 1.0
    seed: int = 0
    paper: ClassVar[str] = "zhang2024npo"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"epochs": 2},)

    def __post_init__(self) -> None:
        check_ranges(self, beta="> 0", rate="> 0", epochs="> 0")

    def reads(self) -> dict[str, Examples]:
        """Read the examples to forget and those to keep."""
        return dict.fromkeys(SIDES, Examples())

    def planned(self, model: Model, forget: Inputs, retain: Inputs) -> RewritePlan:
        """Return the trained weights."""
        require_truth("NegPreference", model, forget=forget, retain=retain)
        others = Cycle(retain)
        original = row_losses(model, with_copy(model.module), forget)
        before: dict[tuple[bytes, ...], Tensor] = {}

        def objective(trainee: Trainee, batch: InputBatch) -> Tensor:
            key = tuple(batch.keys)
            if key not in before:
                with torch.no_grad():
                    before[key] = original(batch).losses
            losses = trainee.losses(batch)
            gentle = preference_loss(losses.losses, before[key], self.beta)[losses.known].mean()
            return gentle + self.retain_weight * mean_loss(trainee, others.next(trainee.draw))

        new = tuned(
            model,
            forget,
            objective,
            rate=self.rate,
            epochs=self.epochs,
            seed=self.seed,
            label="negative preference",
        )
        return _planned(model, new, "neg_preference", forget, retain)


def preference_loss(losses: Tensor, before: Tensor, beta: float) -> Tensor:
    """Return ``-(2 / beta) log sigmoid(-beta (log p - log p_original))`` of each example."""
    return -2 / beta * nn.functional.logsigmoid(beta * (losses - before))


@final
@dataclass(frozen=True)
class Retrain(Rewrite):
    """Train a new model on all examples but the forget examples: the gold standard. Trained.

    Range        all weights are new.
    Cost         ``epochs`` passes over the retained data.
    Assumes      the retained data are the training data, and the recipe is the model's: a
                 comparison with the new model is only as good as this assumption.

    Parameters
    ----------
    make : callable, optional
        Returns a new module with fresh weights; by default one of the model's configuration, or a
        copy whose layers draw their weights again.
    rate : float, default=1e-3
        Learning rate of Adam.
    epochs : int, default=30
        Number of passes over the examples.
    weight_decay : float, default=0.0
        Weight decay of Adam.
    seed : int, default=0
        Draws weights and order.

    References
    ----------
    bourtoule2021unlearning
    """

    make: Callable[[], nn.Module] | None = None
    rate: float = 1e-3
    epochs: int = 30
    weight_decay: float = 0.0
    seed: int = 0
    paper: ClassVar[str] = "bourtoule2021unlearning"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"epochs": 2},)

    def __post_init__(self) -> None:
        check_ranges(self, rate="> 0", epochs="> 0")

    def reads(self) -> dict[str, Examples]:
        """Read the training examples; ``forget`` is only evaluated."""
        return {"retain": Examples(), "forget": Examples(optional=True)}

    def planned(self, model: Model, retain: Inputs, forget: Inputs | None) -> RewritePlan:
        """Return the new weights."""
        require_truth("Retrain", model, retain=retain)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            fresh = _fresh(model.module) if self.make is None else self.make()
        new = tuned(
            model,
            retain,
            mean_loss,
            rate=self.rate,
            epochs=self.epochs,
            seed=self.seed,
            label="training anew",
            weight_decay=self.weight_decay,
            start=fresh.train(),
        )
        return _planned(model, new, "retrain", forget, retain)


def _fresh(module: nn.Module) -> nn.Module:
    """Return a model of equal architecture with newly initialised weights."""
    config = module.__dict__.get("config")
    if config is not None and hasattr(type(module), "from_pretrained"):
        make: Any = type(module)
        return make(config).to(next(module.parameters()).device)
    new = with_copy(module)
    for path, part in new.named_modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
        elif next(part.parameters(recurse=False), None) is not None:
            raise InputError(
                f"Retrain: {path or type(part).__name__} has weights but no method to "
                "reinitialise them (reset_parameters). Pass make=, a function that returns a "
                "fresh model."
            )
    return new


@dataclass
class _Limit:
    """Whether the mean loss of examples passed a limit, asked at most 64 times an epoch."""

    inputs: Inputs
    most: float
    n_rows: int = 0
    latest: float = 0.0

    def note(self, n_rows: int, loss: float) -> None:
        """Note the loss of a batch before its step."""
        self.n_rows, self.latest = self.n_rows + n_rows, loss

    def is_passed(self, trainee: Trainee) -> bool:
        """Return whether the loss of all examples is above the limit; False if it is not asked."""
        if self.latest <= self.most / 2 or self.n_rows * MOST_ASKED < len(self.inputs):
            return False
        self.n_rows = 0
        return _loss_of(trainee, self.inputs) > self.most


def _loss_of(trainee: Trainee, inputs: Inputs) -> float:
    total, n = 0.0, 0
    with torch.no_grad():
        for batch in each_batch(inputs):
            losses = trainee.losses(batch)
            total, n = total + float(losses.losses.sum()), n + int(losses.known.sum())
    return total / max(1, n)


def _planned(
    model: Model, new: nn.Module, method: str, forget: Inputs | None, retain: Inputs
) -> RewritePlan:
    """Return the plan, with the loss on both sides of the data after training."""
    figures: dict[str, float] = {}
    for side, data in zip(SIDES, (forget, retain), strict=True):
        if data is not None:
            trainee = Trainee(new, row_losses(model, new, data), torch.Generator())
            figures[f"loss_{side}"] = _loss_of(trainee, data)
    return plan_of(model, new, method, **figures)
