"""An arm of a fine-tuning experiment: a copy trained on its task, with or without losses at sites.

Both arms see the same rows in the same order. A training that was stopped goes on from its
checkpoint with the same bits: the order of an epoch and the draws of a step depend only on the seed
and on the number of the epoch or step.
"""

import copy
import io
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sonde.core.errors import InputError, StateError
from sonde.core.inputs import InputBatch, Model
from sonde.data.inputs import ItemInputs
from sonde.data.listing import taken
from sonde.engine.progress import Bar
from sonde.engine.steps import Descent
from sonde.files.durable import atomic_write
from sonde.layers import inserted_layers
from sonde.run.training.low_rank import (
    PREFIX,
    adapter_parameters,
    check_rank,
    merge_adapters,
    rank_in,
    with_adapters,
)
from sonde.tap import RowLosses
from sonde.tap.decoding.layers import ModelBlocks
from sonde.tap.training.identity import Facts, find_difference, loss_facts, model_facts
from sonde.tap.training.terms import EMA, Terms, moving_average, training
from sonde.weights.tuning import row_losses, with_copy

SAVED_EVERY_SECONDS = 60.0
LAYERS, LAST = "layers", "last"
"""The scopes of the inserted layers, and of the last tensors of a model."""
Losses = Mapping[str | tuple[str, ...], nn.Module]


@dataclass(frozen=True)
class Recipe:
    """Settings of both training runs.

    Parameters
    ----------
    epochs : int
    rate : float
        Learning rate of Adam.
    weight : float or tuple of float
        Weight of the losses, or one for each; the task has weight 1.
    scope : str
        Which parameters move: ``all``, ``norms``, ``layers`` (the inserted ones), ``top:N`` (the
        last N blocks and what follows), ``last:N`` (the last tensors that together hold N numbers
        or more), ``low-rank:N`` (adapters of rank N beside linear layers, merged at the end), or
        several as ``norms+layers``.
    seed : int
        Draws the order of the examples.
    """

    epochs: int = 3
    rate: float = 1e-4
    weight: float | tuple[float, ...] = 0.1
    scope: str = "all"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Arm:
    """A trained copy and its learning curve.

    Parameters
    ----------
    module : nn.Module
    losses : mapping of site or sites to nn.Module
        The losses with their own trained parameters.
    curve : list of dict
        For each step ``step``, ``task`` (nats) and the value of each loss by its name; for steps at
        which it was measured also ``conflict``, the cosine of the gradients of task and losses.
    teacher : Model, optional
        What losses compare with.
    average : AveragedModel, optional
        The moving average of the copy, if that is the teacher.
    left_out : dict of str to int
        Number of steps without a loss, by its name: batches with too few rows or classes.
    """

    module: nn.Module
    losses: Losses
    curve: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    teacher: Model | None = None
    average: AveragedModel | None = None
    left_out: dict[str, int] = field(default_factory=dict[str, int])


def train_arm(
    model: Model,
    examples: ItemInputs,
    losses: Losses,
    recipe: Recipe,
    *,
    teacher: Model | Literal["ema"] | None = None,
    checkpoint: Path | None = None,
    label: str = "train",
    progress: bool = True,
) -> Arm:
    """Return a copy of a model after training on its task and on losses at sites.

    Parameters
    ----------
    model : Model
        Unchanged.
    examples : ItemInputs
        With labels, or texts.
    losses : mapping of site or sites to nn.Module
        If empty, the task alone is trained. The mapping's modules are not changed.
    recipe : Recipe
    teacher : Model or "ema", optional
        "ema": the moving average of the copy itself, with or without losses.
    checkpoint : path, optional
        File to go on from, written every minute and when the training ends or is interrupted.
    label : str
        For the progress bar.
    progress : bool, default=True

    Raises
    ------
    InputError
        If nothing is trained, a loss cannot be computed, or a loss is not finite.
    """
    module, rank = with_copy(model.module), rank_in(recipe.scope)
    if rank:
        with_adapters(module, rank, recipe.seed)
    scoped(module, recipe.scope)
    trainee = row_losses(replace(model, module=module), module, examples)
    own = {key: copy.deepcopy(loss) for key, loss in losses.items()}
    n_batches = -(-len(examples) // examples.batch_size)
    average = moving_average(module) if teacher == EMA else None
    other = teacher if isinstance(teacher, Model) else None
    if average is not None:
        other = replace(model, module=average.module)
    arm = Arm(module, own, teacher=other, average=average)
    identity = _identity(model, examples, losses, recipe, teacher)
    with (
        Bar(label, recipe.epochs * len(examples), shown=progress, keeps=True) as bar,
        _attached(model, arm, recipe.weight) as terms,
    ):
        moved = [p for p in module.parameters() if p.requires_grad]
        if terms is not None:
            terms.change_in_eval()  # nothing is dropped, but what a loss hides is hidden
            _begin(trainee, terms, next(_epoch(examples, recipe.seed, 0)), recipe.seed)
            moved += terms.parameters()
        descent = Descent("sonde train", moved, recipe.rate)
        keeper = _Keeper(checkpoint, identity, arm, terms, descent)
        keeper.resume()
        bar.advance(min(descent.n_steps * examples.batch_size, recipe.epochs * len(examples)))
        with keeper:
            for epoch in range(descent.n_steps // n_batches, recipe.epochs):
                batches = _epoch(examples, recipe.seed, epoch)
                for number, batch in enumerate(batches, epoch * n_batches):
                    if number < descent.n_steps:
                        continue
                    with _drawing(recipe.seed, number):
                        arm.curve.append(
                            _step(trainee, terms, descent, batch, first=number % n_batches == 0)
                        )
                    if terms is None and average is not None:
                        average.update_parameters(module)
                    keeper.tick()
                    bar.advance(len(batch))
    if terms is not None:
        arm.left_out.update(terms.left_out)
    if rank:
        merge_adapters(module)
    return arm


def _attached(
    model: Model, arm: Arm, weight: float | tuple[float, ...]
) -> AbstractContextManager[Terms | None]:
    """Return a context manager that attaches losses at their sites; yields None without losses."""
    if not arm.losses:
        return nullcontext()
    teacher = arm.teacher if arm.average is None else arm.average
    each: Any = weight
    if isinstance(weight, tuple):
        each = dict(zip(arm.losses, weight, strict=True))
    return training(replace(model, module=arm.module), arm.losses, weight=each, teacher=teacher)


def scoped(module: nn.Module, scope: str) -> None:
    """Make only the parameters of a scope trainable; ``+`` joins several scopes.

    Raises
    ------
    InputError
        If the scope is unknown or holds no parameter.
    """
    wanted = {name for word in scope.split("+") for name in _in_scope(module, word)}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in wanted and parameter.is_floating_point())


def check_scope(module: nn.Module, scope: str) -> None:
    """Raise if a model lacks the scope, before data are read.

    Raises
    ------
    InputError
        If the scope is unknown, holds no parameter, or names more than there is.
    """
    check_rank(module, rank_in(scope))
    for word in scope.split("+"):
        if word != LAYERS and word.partition(":")[0] != PREFIX:
            _in_scope(module, word)


def _in_scope(module: nn.Module, scope: str) -> set[str]:
    """Return the names of the parameters of one scope."""
    word, _, number = scope.partition(":")
    names = {name for name, _ in module.named_parameters()}
    if word == "norms" and not number:
        norms = [n for n, part in module.named_modules() if "norm" in type(part).__name__.lower()]
        wanted = {name for name in names if name.rpartition(".")[0] in norms}
    elif word == "top" and number.isdigit() and int(number) > 0:
        blocks = ModelBlocks(module).paths
        if int(number) > len(blocks):
            raise InputError(
                f"--scope: expected top:1 to top:{len(blocks)} for the {len(blocks)} blocks of "
                f"{type(module).__name__}, got {scope!r}."
            )
        order = [name for name, _ in module.named_parameters()]
        earlier = tuple(f"{path}." for path in blocks[: -int(number)])
        inside = [
            i for i, name in enumerate(order) if name.startswith(tuple(f"{b}." for b in blocks))
        ]
        wanted = {n for n in order[min(inside, default=0) :] if not n.startswith(earlier)}
    elif word == LAST and number.isdigit() and int(number) > 0:
        wanted = _last_tensors(module, int(number))
    elif scope == LAYERS:
        own = {id(p) for layer in inserted_layers(module).values() for p in layer.parameters()}
        wanted = {name for name, p in module.named_parameters() if id(p) in own}
    elif word == PREFIX:
        wanted = adapter_parameters(module)
    elif scope == "all":
        wanted = names
    else:
        raise InputError(
            f"--scope: expected all, norms, layers, top:N, last:N or low-rank:N, with N of at "
            f"least 1, got {scope!r}."
        )
    if not wanted:
        raise InputError(f"--scope: {type(module).__name__} has no parameter in {scope!r}.")
    return wanted


def _last_tensors(module: nn.Module, least: int) -> set[str]:
    """Return the names of the last parameters that together hold at least `least` numbers."""
    names: set[str] = set()
    n = 0
    for name, parameter in reversed(list(module.named_parameters())):
        if n >= least:
            break
        if parameter.is_floating_point():
            names.add(name)
            n += parameter.numel()
    return names


def _begin(trainee: RowLosses, terms: Terms, batch: InputBatch, seed: int) -> None:
    """Initialize losses with lazy layers before the optimiser is made."""
    with _drawing(seed, 0), torch.enable_grad():
        trainee.answers(batch)
        terms.loss(label=batch.label)


def _step(
    trainee: RowLosses, terms: Terms | None, descent: Descent, batch: InputBatch, *, first: bool
) -> dict[str, float]:
    """Take an optimiser step and return the values of the losses before it."""
    with torch.enable_grad():
        answers = trainee.answers(batch)
        n_known = (answers.truth >= 0).sum().clamp(min=1)
        task = -answers.log_p_of_truth.sum() / n_known
        row = {"step": float(descent.n_steps), "task": float(task.detach())}
        if terms is None and not task.requires_grad:
            raise InputError("sonde train: the task loss depends on no trained parameter. Choose "
                "another layer, site or --scope.")  # fmt: skip
        if terms is None:
            descent.step(task)
            return row
        added = terms.loss(label=batch.label)
        row |= terms.figures
        if first:
            row["conflict"] = _cosine(task, added, descent.parameters)
        descent.step(task + added.to(task))
    terms.step()
    return row


def _cosine(task: Tensor, added: Tensor, parameters: Sequence[Tensor]) -> float:
    """Return the cosine of the gradients of two losses; NaN if either gradient is 0."""
    both = [
        torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
        for loss in (task, added)
    ]
    pairs = [(a, b) for a, b in zip(*both, strict=True) if a is not None and b is not None]
    sizes = [sum(float(g.double().square().sum()) for g in own if g is not None) for own in both]
    dot = sum(float((a.double() * b.double()).sum()) for a, b in pairs)
    return dot / (sizes[0] * sizes[1]) ** 0.5 if min(sizes) > 0 else float("nan")


def _epoch(examples: ItemInputs, seed: int, epoch: int) -> Any:
    """Return the batches of one epoch in their order."""
    draw = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(examples), generator=draw).numpy()
    shuffled = replace(examples, listing=taken(examples.listing, order, f"epoch {epoch}"))
    return shuffled.batches(0, len(shuffled))


@contextmanager
def _drawing(seed: int, step: int) -> Any:
    """Seed torch for a step, and restore its random state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 1_000_003 + step)
        yield


def _identity(
    model: Model,
    examples: ItemInputs,
    losses: Losses,
    recipe: Recipe,
    teacher: Model | Literal["ema"] | None,
) -> dict[str, Facts]:
    """Return all settings of a training run, to refuse the checkpoint of a different run."""
    layers = inserted_layers(model.module)
    return {
        "the model": model_facts(model.module, full=True),
        "the inserted layers": {site: repr((type(x), x.given)) for site, x in layers.items()},
        "the teacher": {"kind": EMA}
        if teacher == EMA
        else model_facts(_module(teacher), full=True),
        "the data": {name: repr(x) for name, x in examples.identity().items()},
        "the settings": {name: repr(x) for name, x in asdict(recipe).items()},
        **{
            f"the loss {type(loss).__name__} {n + 1}": {"site": repr(key), **loss_facts(loss)}
            for n, (key, loss) in enumerate(losses.items())
        },
    }


def _module(teacher: Any) -> nn.Module | None:
    return teacher.module if isinstance(teacher, Model) else None


class _Keeper:
    """Saves the state of a training run to a checkpoint file, and loads it again."""

    def __init__(
        self,
        path: Path | None,
        known: dict[str, Facts],
        arm: Arm,
        terms: Terms | None,
        descent: Descent,
    ) -> None:
        self._path, self._known = path, known
        self._arm, self._terms, self._descent = arm, terms, descent
        self._saved = time.monotonic()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None or isinstance(error, KeyboardInterrupt):
            self._save()

    def tick(self) -> None:
        """Save if the last save is more than a minute old."""
        if time.monotonic() - self._saved > SAVED_EVERY_SECONDS:
            self._save()

    def resume(self) -> None:
        """Load the state from the file, if the file exists.

        Raises
        ------
        StateError
            If the file is of another training.
        """
        if self._path is None or not self._path.exists():
            return
        held: dict[str, Any] = torch.load(self._path, weights_only=True)
        if (what := find_difference(held.get("known", {}), self._known)) is not None:
            raise StateError(
                f"sonde train: {self._path} is the checkpoint of another training run, whose "
                f"{what} differs. Run with --fresh to delete it, or choose another -o."
            )
        self._arm.module.load_state_dict(held["module"])
        if self._arm.average is not None and self._terms is None:
            self._arm.average.load_state_dict(held["average"])
        self._descent.load_state_dict(held["descent"])
        if self._terms is not None:
            self._terms.load_state_dict(held["terms"])
            self._terms.left_out.update(held["left_out"])
        self._arm.curve.extend(held["curve"])

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        held = {
            "known": self._known,
            "module": self._arm.module.state_dict(),
            "descent": self._descent.state_dict(),
            "average": None if self._arm.average is None else self._arm.average.state_dict(),
            "terms": None if self._terms is None else self._terms.state_dict(),
            "left_out": {} if self._terms is None else self._terms.left_out,
            "curve": self._arm.curve,
        }
        file = io.BytesIO()
        torch.save(held, file)
        atomic_write(self._path, file.getvalue())
