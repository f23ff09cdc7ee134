"""Attach losses to sites of an unmodified model while it is trained."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sonde.core.errors import InputError, SiteError, StateError
from sonde.core.inputs import InputBatch, Model
from sonde.core.schedule import Constant, Schedule
from sonde.core.site import Reducer, Site
from sonde.core.token_masks import MaskMeaning, find_mask
from sonde.files.durable import atomic_write
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import arguments, find, find_input
from sonde.tap.hooks.session import Session
from sonde.tap.model.axes import guess_axes
from sonde.tap.model.sites import resolve
from sonde.tap.rows.frame import Frame
from sonde.tap.rows.reduce import NARROW, Reduction

TEACHER = "teacher:"
Key = str | tuple[str, ...]
Weight = float | Schedule


@dataclass(eq=False)
class _Site:
    """A site that losses read, and the rows of the forwards since the last loss."""

    name: str
    site: Site
    module: nn.Module
    views: list[Tensor] = field(default_factory=list[Tensor])
    now: list[Tensor] = field(default_factory=list[Tensor])


@dataclass(eq=False)
class _Term:
    """A loss, the names of the sites that it reads, and its weight."""

    name: str
    loss: nn.Module
    sites: tuple[str, ...]
    schedule: Schedule


class Terms:
    """Losses that are attached to sites of a model; made by ``sonde.training``.

    Attributes
    ----------
    figures : dict of str to float
        Value of each loss in the last call of ``loss``, without its weight.
    n_steps : int
        How often ``step`` was called.
    """

    def __init__(
        self,
        module: nn.Module,
        losses: Mapping[Any, nn.Module],
        weight: Weight | Mapping[Any, Weight],
        teacher: nn.Module | None,
        reducer: Reducer,
    ) -> None:
        self._module, self._teacher, self._reducer = module, teacher, reducer
        self.figures: dict[str, float] = {}
        self.n_steps = 0
        self._meaning, self._mask = MaskMeaning(), None
        self._sites: dict[str, _Site] = {}
        self._terms = [_Term(*self._made(key, x, weight)) for key, x in losses.items()]
        self._held = nn.ModuleDict({str(n): term.loss for n, term in enumerate(self._terms)})
        self._given: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._open: list[Session] = []

    def parameters(self) -> list[nn.Parameter]:
        """Return what the losses learn themselves, for the optimiser."""
        return list(self._held.parameters())

    @property
    def n_hooks(self) -> int:
        """Sites that are being read; 0 once all schedules are over."""
        return sum(len(s.outputs) + len(s.inputs) for s in self._open if s.root is not None)

    def loss(self, **columns: Any) -> Tensor:
        """Return the weighted sum of all losses on the rows since the last call.

        Parameters
        ----------
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
        total: Tensor | None = None
        self.figures = {}
        for term in self._terms:
            if term.schedule.is_over(self.n_steps):
                continue
            value = term.loss(**self._arguments(term, columns))
            if not bool(torch.isfinite(value.detach())):
                raise InputError(
                    f"training: the loss {term.name} is {float(value.detach())} at step "
                    f"{self.n_steps}. Lower the rate, or look at the rows of {term.sites[0]}."
                )
            self.figures[term.name] = float(value.detach())
            value = value * term.schedule.weight(self.n_steps)
            total = value if total is None else total + value
        for place in self._sites.values():
            place.views = []
        if total is None:
            device = next(self._module.parameters()).device
            return torch.zeros((), device=device)
        return total

    def step(self) -> None:
        """Go on to the next step; call it after the optimiser's own.

        Hooks of losses whose schedule is over are removed. Losses with a ``step`` of their own, as
        those with a memory of rows, take it too.
        """
        self.n_steps += 1
        for term in self._terms:
            own: Any = getattr(term.loss, "step", None)
            if own is not None:
                own()
        if self._open and self._wanted() != self._read:
            self._close()
            self._hook()

    def state_dict(self) -> dict[str, Any]:
        """Return what the losses learned, and the step, for ``load_state_dict``."""
        return {"losses": self._held.state_dict(), "n_steps": self.n_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of the same losses."""
        self._held.load_state_dict(state["losses"])
        self.n_steps = int(state["n_steps"])
        if self._open:
            self._close()
            self._hook()

    def save(self, path: str | Path) -> None:
        """Write what the losses learned, and the step, to a safetensors file."""
        held = {name: x.contiguous() for name, x in self._held.state_dict().items()}
        told = {"n_steps": str(self.n_steps), "losses": self._signature()}
        atomic_write(path, safetensors.torch.save(held, told))

    def load(self, path: str | Path) -> None:
        """Go on from a file that ``save`` wrote.

        Raises
        ------
        StateError
            If the file belongs to other losses or sites.
        """
        with safetensors.safe_open(str(path), "pt") as file:
            told = file.metadata() or {}
            if told.get("losses") != self._signature():
                raise StateError(
                    f"Terms.load: {path} was written for {told.get('losses')}, these losses are "
                    f"{self._signature()}. Attach the same losses to the same sites."
                )
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.load_state_dict({"losses": held, "n_steps": told["n_steps"]})

    def _signature(self) -> str:
        return "; ".join(term.name for term in self._terms)

    def _made(
        self, key: Key, loss: nn.Module, weight: Weight | Mapping[Any, Weight]
    ) -> tuple[str, nn.Module, tuple[str, ...], Schedule]:
        """Return name, loss, sites and schedule of one entry of the user's mapping."""
        patterns = (key,) if isinstance(key, str) else key
        sites = tuple(self._place(pattern) for pattern in patterns)
        own = weight[key] if isinstance(weight, Mapping) else weight
        schedule = own if isinstance(own, Schedule) else Constant(float(own))
        return f"{type(loss).__name__}({', '.join(sites)})", loss, sites, schedule

    def _place(self, pattern: str) -> str:
        """Note that a site is read, and return its name."""
        of_teacher = pattern.startswith(TEACHER)
        module = self._teacher if of_teacher else self._module
        if module is None:
            raise InputError(f"training: {pattern!r} needs teacher=, the model to read it from.")
        found = resolve(module, pattern.removeprefix(TEACHER))
        if len(found) != 1:
            some = ", ".join(map(str, found[:4]))
            raise SiteError(
                f"training: expected one site, got {len(found)} for {pattern!r}: {some}."
            )
        if found[0].port not in ("out", "in"):
            raise SiteError(
                f"training: expected a site with port out or in, got {found[0]}. Losses of "
                "attention ports are not attached yet."
            )
        name = (TEACHER if of_teacher else "") + str(found[0])
        owner = ModuleNames(module).modules[found[0].path]
        self._sites.setdefault(name, _Site(name, found[0], owner))
        return name

    def _wanted(self) -> set[str]:
        over = (term for term in self._terms if not term.schedule.is_over(self.n_steps))
        return {name for term in over for name in term.sites}

    def _hook(self) -> None:
        """Put hooks at the sites of losses that still count."""
        self._read = self._wanted()
        if not self._read:
            return
        mine = [s for name, s in self._sites.items() if name in self._read]
        for module in (self._teacher, self._module):
            own = [s for s in mine if s.name.startswith(TEACHER) == (module is self._teacher)]
            if module is None or (not own and module is self._teacher):
                continue
            outputs = [(s.module, partial(self._after, s)) for s in own if s.site.port == "out"]
            inputs = [(s.module, partial(self._before, s)) for s in own if s.site.port == "in"]
            is_teacher = module is self._teacher
            session = Session(
                module,
                outputs=outputs,
                inputs=[] if is_teacher else [(module, self._begin), *inputs],
                reading=is_teacher,
                finish=None if is_teacher else self._finish,
                owner="training",
            )
            session.__enter__()
            self._open.append(session)

    def _close(self) -> None:
        while self._open:
            self._open.pop().__exit__(None, None, None)

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._given = args, kwargs
        found = find_mask(arguments(self._module, args, kwargs))
        self._mask = None if found is None else self._meaning.real_tokens(*found)
        for place in self._sites.values():
            place.now = []

    def _after(self, place: _Site, output: Any) -> None:
        if torch.is_grad_enabled() or place.name.startswith(TEACHER):
            self._keep(place, find(output, place.site.key))

    def _before(self, place: _Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled() or place.name.startswith(TEACHER):
            self._keep(place, find_input(place.module, args, kwargs, place.site.key)[1])

    def _keep(self, place: _Site, x: Tensor | None) -> None:
        if x is None:
            raise SiteError(f"training: {place.name} returned no floating-point tensor.")
        call = place.site.call
        if call is None and place.now:
            raise SiteError(
                f"training: {place.site.path} is called more than once in one forward. Write "
                f"{place.site.path}@0, @1, ..."
            )
        place.now.append(self._rows(place, x))  # at once: a later module may write into it

    def _finish(self) -> None:
        """Take the rows of a forward that gradients will run through, and ask the teacher."""
        if not torch.is_grad_enabled():
            return
        teacher = self._teacher
        if teacher is not None and any(name.startswith(TEACHER) for name in self._read):
            args, kwargs = self._given
            with torch.no_grad():
                teacher(*args, **kwargs)
        for place in (s for name, s in self._sites.items() if name in self._read):
            call = place.site.call
            if not place.now or (isinstance(call, int) and call >= len(place.now)):
                return  # the forward was ended early
            place.views.append(place.now[call if isinstance(call, int) else -1])
            place.now = []

    def _rows(self, place: _Site, x: Tensor) -> Tensor:
        root = self._teacher if place.name.startswith(TEACHER) else self._module
        assert root is not None
        reduction = Reduction(self._reducer, guess_axes(x, place.module, root, self._reducer.axis))
        frame = Frame(_examples(x.shape[0]), x.device)
        frame.masks |= {"pos": self._mask}
        return reduction(x.float() if x.dtype in NARROW else x, frame)[0]

    def _arguments(self, term: _Term, columns: dict[str, Any]) -> dict[str, Any]:
        """Return what a loss is called with, by the names of its arguments."""
        views = [self._sites[name].views for name in term.sites]
        if any(not own for own in views):
            raise StateError(
                f"training: expected a forward of the model before the loss {term.name}, with "
                "gradients enabled, got none since the last loss."
            )
        rows = [torch.cat(own) for own in views]
        for name, x in zip(term.sites, rows, strict=True):
            n_broken = int((~torch.isfinite(x.detach())).any(1).sum())
            if n_broken:
                raise InputError(
                    f"training: {n_broken} of {len(x)} rows of {name} are not finite at step "
                    f"{self.n_steps}. Lower the rate, or look at the inputs of this step."
                )
        if not any(x.requires_grad for x in rows) and not any(
            p.requires_grad for p in term.loss.parameters()
        ):
            raise SiteError(
                f"training: the loss {term.name} trains nothing: nothing below its sites has "
                "gradients. Choose a site above what is trained."
            )
        n_views, n = len(views[0]), len(rows[0])
        names = inspect.signature(term.loss.forward).parameters
        made: dict[str, Any] = dict(zip((name for name in names), rows, strict=False))
        for name, parameter in names.items():
            if name in made:
                continue
            if name == "view":
                sizes = torch.tensor([len(x) for x in views[0]])
                made[name] = torch.arange(n_views).repeat_interleave(sizes).to(rows[0].device)
            elif name in columns:
                made[name] = _repeated(columns[name], n, n_views)
            elif parameter.default is inspect.Parameter.empty and parameter.kind in (
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                inspect.Parameter.KEYWORD_ONLY,
            ):
                raise InputError(
                    f"training: the loss {term.name} needs {name}. Pass terms.loss({name}=...)."
                )
        return made


@contextlib.contextmanager
def training(
    model: Model | nn.Module,
    losses: Mapping[Any, nn.Module],
    *,
    weight: Weight | Mapping[Any, Weight] = 1.0,
    teacher: Model | nn.Module | None = None,
    reducer: str | Reducer = "mean",
) -> Iterator[Terms]:
    """Attach losses to sites of a model that is trained inside the ``with`` block.

    The model is not changed: sites are read on the way of its own forwards, with their gradients.
    Forwards under ``no_grad``, as in a validation, and the recomputation of checkpointed parts
    bring no rows. Several forwards before one loss are views of the same examples.

    Parameters
    ----------
    model : Model or nn.Module
    losses : mapping of site, or tuple of sites, to nn.Module
        A loss is called with the rows of its sites as its first arguments, and with columns by the
        names of the others. ``teacher:PATTERN`` reads the teacher.
    weight : float, Schedule, or mapping of site to either, default=1.0
    teacher : Model or nn.Module, optional
        Runs on the same arguments, in eval mode, without gradients.
    reducer : str or Reducer, default="mean"
        How the states of several tokens or places become rows.

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
    other = teacher.module if isinstance(teacher, Model) else teacher
    if not losses:
        raise InputError("training: expected at least one loss, got none.")
    made = Reducer(reducer) if isinstance(reducer, str) else reducer
    terms = Terms(module, losses, weight, other, made)
    try:
        terms._hook()
        yield terms
    finally:
        terms._close()


def _repeated(column: Any, n: int, n_views: int) -> Any:
    """Return a column of one view's examples for the rows of all views."""
    if isinstance(column, Tensor) and column.ndim and len(column) * n_views == n and n_views > 1:
        return torch.cat([column] * n_views)
    return column


def _examples(n: int) -> InputBatch:
    index = torch.arange(n)
    keys = [b""] * n
    return InputBatch(
        args=(),
        kwargs={},
        ids=[""] * n,
        keys=keys,
        order=index,
        occurrence=torch.zeros_like(index),
        group_keys=keys,
        label=torch.full((n,), -1),
    )
