"""Attach losses to sites of an unmodified model during training."""

import contextlib
import inspect
import json
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sonde.core.errors import BatchError, InputError, SondeWarning, StateError, near
from sonde.core.inputs import Model
from sonde.core.schedule import Constant
from sonde.core.special_ids import special_ids
from sonde.files.durable import atomic_write
from sonde.tap.hooks.sharding import require_one_kind, split_layers
from sonde.tap.training.evaluating import Batches, evaluated
from sonde.tap.training.given import check_views, loss_arguments, zero
from sonde.tap.training.identity import Origin
from sonde.tap.training.place import Place
from sonde.tap.training.places import Places
from sonde.tap.training.ranks import averaged, n_ranks, rows_are_gathered
from sonde.tap.training.term import (
    Reduced,
    Term,
    Weights,
    finite_weight,
    listed,
    made_term,
    weights_of,
)

EMA, DECAY = "ema", 0.999
GIVEN = frozenset({"label", "logits", "group"})
"""Columns that may be given though no loss takes them, by code that does not know the losses."""
STILL = 4
"""Steps after which own parameters with gradients must have moved; scalers skip the first few."""


class Terms:
    """Losses attached to sites of a model; made by ``sonde.training``.

    Attributes
    ----------
    module : nn.Module
        The model that is trained.
    figures : dict of str to float
        Value of each loss in the last call of ``loss``, without its weight.
    n_steps : int
        How often ``step`` was called.
    left_out : dict of str to int
        Number of batches, by loss, that had too few rows or classes for it, as the last batch of an
        epoch may have: the loss adds nothing there.
    """

    def __init__(
        self,
        module: nn.Module,
        losses: Mapping[Any, nn.Module | Sequence[nn.Module]],
        weight: Weights | Mapping[Any, Weights],
        teacher: nn.Module | None,
        reducer: Reduced | Mapping[Any, Reduced],
        special_ids: Collection[int] = (),
        *,
        here: bool = False,
    ) -> None:
        require_one_kind("training", module)
        self._split = split_layers(module)
        if self._split is not None and self._split.n_ranks < n_ranks():
            raise InputError(
                f"training: expected tensor parallelism over all {n_ranks()} ranks, got "
                f"{self._split.n_ranks} of them: losses of all rows would count rows that several "
                "ranks hold more than once. Use data parallelism or tensor parallelism."
            )
        self.module, self._teacher = module, teacher
        self._places = Places(module, teacher, special_ids, here=here)
        self._lock = threading.RLock()
        self.figures: dict[str, float] = {}
        self.left_out: dict[str, int] = {}
        self.n_steps, self._n_views = 0, 0
        self._terms = [
            made_term(self._places, key, x, own, reducer)
            for key, one in losses.items()
            for x, own in zip(listed(one), weights_of(key, listed(one), weight), strict=True)
        ]
        names = [term.name for term in self._terms]
        for n, term in enumerate(self._terms):
            if (before := names[:n].count(term.name)) > 0:
                term.name = f"{term.name} {before + 1}"
        self._origin = Origin(module, teacher, self._terms)
        self._held = nn.ModuleDict({str(n): term.loss for n, term in enumerate(self._terms)})
        self._n_losses, self._n_still = 0, 0
        self._versions: dict[int, int] = {}
        self._handles: dict[int, Any] = {}

    def parameters(self) -> list[nn.Parameter]:
        """Return the losses' own trainable parameters, for the optimiser.

        Parameters without widths of a loss whose schedule is over are left out: it reads nothing
        from which they could be known.

        Raises
        ------
        StateError
            If the width of some of the others is not known yet.
        """
        over = [x.loss for x in self._terms if x.schedule.is_over(self.n_steps)]
        unread = {id(p) for loss in over for p in loss.parameters() if is_lazy(p)}
        own = [p for p in self._held.parameters() if id(p) not in unread]
        if any(is_lazy(p) for p in own):
            raise StateError(
                "Terms.parameters: expected losses whose widths are known. Run the model and "
                "terms.loss(...) once before."
            )
        return own

    @property
    def n_hooks(self) -> int:
        """Number of sites read or changed at present; 0 after all schedules have ended."""
        return self._places.n_hooks

    @property
    def takes(self) -> frozenset[str]:
        """Names of the losses' arguments: rows of sites, and columns."""
        return frozenset(
            name for term in self._terms for name in inspect.signature(term.loss.forward).parameters
        )

    def loss(self, *, views: int | None = None, **columns: Any) -> Tensor:
        """Return the weighted sum of all losses on the rows since the last call.

        The rows are those of the forwards of the running thread or task; if it made none since the
        last call, those of all others. Threads take turns.

        In training with several processes, losses of all rows together (``batching`` other than
        ``mean``) get the rows and columns of all processes.

        Parameters
        ----------
        views : int, optional
            Number of forwards since the last loss, if they are views of the same examples. Without
            it, more than one is a warning, unless a loss takes ``view`` and their number is always
            the same.
        **columns : Tensor
            What losses take beside rows, by the names of their arguments: ``label``, ``group``,
            ``logits``. A column with one entry for each example of one forward is repeated where
            several forwards (views) came before.

        Raises
        ------
        StateError
            If the model was not called since the last loss.
        InputError
            If a loss needs a column that is not given.
        """
        if unknown := columns.keys() - self.takes - GIVEN:
            name = sorted(unknown)[0]
            raise InputError(
                f"training: no loss takes {name!r}.{near(name, self.takes)} They take "
                f"{', '.join(sorted(self.takes))}."
            )
        # Ranks of tensor parallelism hold the same rows.
        same = contextlib.nullcontext() if self._split is None else rows_are_gathered()
        with self._lock, same, self._places.collected():
            left = [term for term in self._terms if not term.schedule.is_over(self.n_steps)]
            self._n_views = check_views(self._places, left, self._n_views, views)
            return self._loss(left, columns)

    def _loss(self, terms: Sequence[Term], columns: dict[str, Any]) -> Tensor:
        total: Tensor | None = None
        self.figures = {}
        for term in terms:
            if not term.has_value:
                continue
            try:
                value = term.value(self._arguments(term, columns))
            except BatchError as error:
                self._leave_out(term, error)
                value = zero(term.places)
            else:
                term.n_values, term.n_missed = term.n_values + 1, 0
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise InputError(
                    f"training: expected one number from the loss {term.name}, got "
                    f"{type(value).__name__} {tuple(getattr(value, 'shape', ()))}. Pass a module "
                    "that returns a scalar."
                )
            if not bool(torch.isfinite(value.detach())):
                raise InputError(
                    f"training: the loss {term.name} is {float(value.detach())} at step "
                    f"{self.n_steps}. Lower the learning rate, or check the rows of its site."
                )
            if term.n_missed == 0:
                self.figures[term.name] = float(value.detach())
            value = value * finite_weight(term, self.n_steps)
            total = value if total is None else total + value.to(total.device)
        self._places.forget()
        self._n_losses += 1
        self._average_over_ranks()
        if total is None:
            return torch.zeros((), device=next(self.module.parameters()).device)
        return total

    def change_in_eval(self) -> None:
        """Let losses change states in eval mode too.

        Under ``torch.no_grad`` and in ``evaluate`` nothing is changed.
        """
        self._places.changes_in_eval = True

    def forget(self) -> None:
        """Drop the rows of all forward passes since the last loss."""
        with self._lock:
            self._places.collect()
            self._places.forget()

    def evaluate(self, batches: Batches) -> dict[str, float]:
        """Return the value of each loss on held-out batches, without gradients and in eval mode.

        A loss of rows is computed once, on the rows of all batches together, so that it does not
        depend on their size. A loss of whole states or maps of attention is computed batch by
        batch; the result is the mean, weighted by examples. Nothing of the training moves.

        Parameters
        ----------
        batches : iterable of (inputs, columns)
            ``inputs`` is the model's argument, a mapping of arguments by name, or a tuple of
            arguments whose last may be such a mapping; ``columns`` are those that ``loss`` takes,
            such as ``{"label": y}``.

        Raises
        ------
        StateError
            If rows of a forward wait for ``loss``, or there is no batch.
        """
        if self._places.n_waiting:
            raise StateError(
                "Terms.evaluate: a forward pass is still waiting for its loss. Call loss(...) "
                "first."
            )
        terms = [term for term in self._terms if term.has_value]
        given = partial(self._arguments, gathers=False)
        with self._lock:
            losses = evaluated(self.module, self._places, terms, batches, given)
        return dict(zip((term.name for term in terms), losses, strict=True))

    def step(self) -> None:
        """Advance to the next step; call it after the optimiser's own step.

        Hooks of losses whose schedule is over are removed. A teacher that is a moving average is
        updated, and losses with a ``step`` of their own, such as losses with a memory, run it.

        Raises
        ------
        StateError
            If the losses' parameters have gradients and never move: the optimiser lacks them.
        """
        self._require_movement()
        if self._n_losses > 1 and self.n_steps > 0:
            self._tell_accumulated()
        self.n_steps, self._n_losses = self.n_steps + 1, 0
        for term in self._terms:
            own = term.told("step", None)
            if own is not None:
                own()
        if isinstance(self._teacher, AveragedModel):
            self._teacher.update_parameters(self.module)
        if self._is_open and self._wanted() != self._read:
            self.open()

    def state_dict(self) -> dict[str, Any]:
        """Return the losses' trained parameters, an averaged teacher, and the step."""
        held = dict(self._held.state_dict())
        if isinstance(self._teacher, AveragedModel):
            held |= {f"{EMA}.{name}": x for name, x in self._teacher.state_dict().items()}
        over = [n for n, x in enumerate(self._terms) if x.schedule.is_over(self.n_steps)]
        facts = self._origin.facts()
        return {"losses": held, "n_steps": self.n_steps, "over": over, "origin": facts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of the same losses; the model's weights may be loaded later.

        Raises
        ------
        StateError
            If the state belongs to another model, teacher, losses, sites or weights of losses.
        """
        self._origin.check(state.get("origin"), "Terms.load_state_dict: the state", weights=False)
        self._take(state)

    def _take(self, state: Mapping[str, Any]) -> None:
        held, start = dict(state["losses"]), f"{EMA}."
        average = {n.removeprefix(start): held.pop(n) for n in list(held) if n.startswith(start)}
        if bool(average) != isinstance(self._teacher, AveragedModel):
            raise StateError(
                "Terms.load_state_dict: expected the same kind of teacher (a moving average "
                "or none) as when the state was saved. Pass teacher='ema' as before, or "
                "leave it out."
            )
        self._held.load_state_dict(held)
        if self._teacher is not None and average:
            self._teacher.load_state_dict(average)
        self.n_steps, self._n_losses = int(state["n_steps"]), 0
        for n in state.get("over", ()):
            self._terms[n].schedule = Constant(0.0)
        if self._is_open:
            self.open()

    def save(self, path: str | Path) -> None:
        """Write the state to a safetensors file."""
        state = self.state_dict()
        held = {name: x.clone().contiguous() for name, x in state["losses"].items()}
        metadata = {
            "n_steps": str(self.n_steps),
            "over": " ".join(map(str, state["over"])),
            "origin": json.dumps(state["origin"]),
        }
        atomic_write(path, safetensors.torch.save(held, metadata))

    def load(self, path: str | Path) -> None:
        """Restore a file written by ``save``, after the model's weights of that step are loaded.

        Raises
        ------
        StateError
            If the file belongs to another model, teacher, losses, sites or weights of losses.
        """
        with safetensors.safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        origin = json.loads(metadata["origin"]) if "origin" in metadata else None
        self._origin.check(origin, f"Terms.load: {path}", weights=True)
        over = [int(n) for n in metadata.get("over", "").split()]
        self._take({"losses": held, "n_steps": metadata["n_steps"], "over": over})

    def open(self) -> None:
        """Register hooks at the sites of losses whose schedule has not ended."""
        self._is_open, self._read = True, self._wanted()
        self._places.open(self._read)

    def close(self) -> None:
        """Remove all hooks."""
        self._is_open = False
        self._places.close()
        while self._handles:
            self._handles.popitem()[1].remove()

    _is_open = False
    _read: frozenset[Place] = frozenset()

    def _wanted(self) -> frozenset[Place]:
        left = [term for term in self._terms if not term.schedule.is_over(self.n_steps)]
        changed = {term.changed for term in left if term.changed is not None}
        return frozenset(changed | {place for term in left for place in term.places})

    def _require_movement(self) -> None:
        """Raise if own parameters have gradients but stay unchanged step after step."""
        own = [p for p in self._held.parameters() if not is_lazy(p) and p.grad is not None]
        moved = any(p._version != self._versions.get(id(p)) for p in own)
        self._n_still = 0 if moved or not own else self._n_still + 1
        self._versions = {id(p): p._version for p in own}
        if self._n_still >= STILL:
            raise StateError(
                f"training: the parameters of {_own_names(self._terms)} did not change in "
                f"{STILL} steps. Give terms.parameters() to the optimiser."
            )

    def _tell_accumulated(self) -> None:
        for term in self._terms:
            if term.told("batching", "") == "log_mean" and not (
                term.told("memory", 0) or term.told("average", 0)
            ):
                warnings.warn(
                    f"{term.name}: its value depends on the rows of one batch, but the "
                    f"gradients of {self._n_losses} batches were accumulated, which is not "
                    "the gradient of the loss of all rows.",
                    SondeWarning,
                    stacklevel=3,
                )

    def _arguments(
        self, term: Term, columns: dict[str, Any], *, gathers: bool = True
    ) -> dict[str, Any]:
        return loss_arguments(self._places, term, columns, self.n_steps, gathers=gathers)

    def _leave_out(self, term: Term, error: BatchError) -> None:
        """Count a batch that is too small for a loss; raise if none was large enough so far."""
        term.n_missed += 1
        if not term.n_values or term.n_missed >= STILL:
            raise error
        self.left_out[term.name] = self.left_out.get(term.name, 0) + 1
        if self.left_out[term.name] == 1:
            warnings.warn(
                f"{term.name} is left out of step {self.n_steps}: {error} The steps without this "
                "loss are counted in terms.left_out.",
                SondeWarning,
                stacklevel=3,
            )

    def _average_over_ranks(self) -> None:
        """Average the gradients of own parameters over processes."""
        if n_ranks() > 1:
            for p in self._held.parameters():
                if id(p) not in self._handles and p.requires_grad:
                    self._handles[id(p)] = p.register_hook(averaged)


@contextlib.contextmanager
def training(
    model: Model | nn.Module,
    losses: Mapping[Any, nn.Module | Sequence[nn.Module]],
    *,
    weight: Weights | Mapping[Any, Weights] = 1.0,
    teacher: Model | nn.Module | str | None = None,
    reducer: Reduced | Mapping[Any, Reduced] = "auto",
    here: bool = False,
) -> Iterator[Terms]:
    """Attach losses to sites of a model that trains inside the ``with`` block.

    The model is not changed: sites are read on the way of its own forwards, with their gradients.
    Forwards under ``no_grad``, as in a validation, and the recomputation of checkpointed parts
    bring no rows. Several forwards before one loss are views of the same examples.

    Parameters
    ----------
    model : Model or nn.Module
        Model that is trained; its forward passes are read.
    losses : mapping of site, or tuple of sites, to nn.Module or several
        A loss is called with the rows of its sites as its first arguments, and with columns by the
        names of the others. ``teacher:PATTERN`` reads the teacher. A site ``...:probs`` of an
        attention gives probabilities (example, head, query, key), and the argument ``mask`` which
        keys each query may see. ``NestedDropout`` and ``Mixup`` change their site instead, in
        forwards with gradients of a model in training mode.
    weight : float, Schedule, sequence of them, or mapping of site to any of these, default=1.0
        A sequence has a weight for each loss of the list at a site.
    teacher : Model, nn.Module or "ema", optional
        Runs on the same arguments, in eval mode, without gradients. "ema": the moving average of
        the model's own weights, with a decay of 0.999; pass an ``AveragedModel`` of torch for
        another one.
    reducer : str, Reducer, None, or mapping of site to either, default="auto"
        How the states of several tokens or places become rows. "auto": as the loss says by an
        attribute ``reducer``, else "mean". None: states as they are. A mean
        leaves out padding, tokens beside the patches of an image (class, registers), which a few
        forwards of two or three rows at the first step tell, and tokens with special ids if
        ``model`` is a ``Model`` with a tokenizer.
    here : bool, default=False
        Read the forwards of the thread or task that opens the block alone; by default those of
        every caller. A loss is of the forwards of the thread or task that asks for it.

    Yields
    ------
    Terms
        Add ``terms.loss(label=y)`` to the loss of the task, call ``terms.step()`` after the
        optimiser's, and give ``terms.parameters()`` to the optimiser.

    Examples
    --------
    >>> class Small(nn.Module):
    ...     def forward(self, x):
    ...         return x.square().mean()
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> with training(net, {"0": Small()}, weight=0.1) as terms:
    ...     task = net(torch.ones(5, 3)).square().mean()
    ...     (task + terms.loss()).backward()
    ...     terms.step()
    >>> sorted(terms.figures)
    ['Small(0:out)']
    """
    module = model.module if isinstance(model, Model) else model
    if isinstance(teacher, str):
        if teacher != EMA:
            raise InputError(f"training: expected a model or 'ema' as teacher, got {teacher!r}.")
        teacher = moving_average(module)
    other = teacher.module if isinstance(teacher, Model) else teacher
    if other is module:
        raise InputError(
            "training: the teacher is the model itself. Pass a copy of it, or 'ema' for an average."
        )
    if not losses:
        raise InputError("training: expected at least one loss, got none.")
    ids = special_ids(model.processor) if isinstance(model, Model) else frozenset[int]()
    terms = Terms(module, losses, weight, other, reducer, ids, here=here)
    try:
        terms.open()
        yield terms
    finally:
        terms.close()


def moving_average(module: nn.Module) -> AveragedModel:
    """Return the moving average of a model's weights that ``teacher="ema"`` maintains."""
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(DECAY))


def _own_names(terms: list[Term]) -> str:
    """Return the names of losses that have trainable parameters."""
    return ", ".join(term.name for term in terms if any(True for _ in term.loss.parameters()))
