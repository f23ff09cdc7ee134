"""A live model as a differentiable function of one of its tensors: an input or states."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core._kinds import is_dict, is_tuple
from sonde.core.errors import InputError, SiteError
from sonde.core.inputs import InputBatch, Model
from sonde.core.site import Site
from sonde.tap.hand.restart import RecordedForward, record_forward
from sonde.tap.hooks.cache import require_no_cache
from sonde.tap.hooks.call import CallArguments, encoder_of
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import (
    changed,
    find,
    find_input,
    name_of_input,
    named_inputs,
    replaced,
    with_input,
    with_inputs,
)
from sonde.tap.hooks.session import Session, check_readable
from sonde.tap.model.axes import Axes, find_axes, guess_axes
from sonde.tap.model.float_inputs import float_inputs, told_apart
from sonde.tap.model.influence import Influence
from sonde.tap.model.input_types import place_of
from sonde.tap.model.probe import probe
from sonde.tap.model.sites import Pattern, resolve
from sonde.tap.model.token_table import TokenTable, find_token_table, find_token_tables, token_ids

INPUT = "input"
Args = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Varied:
    """One varied tensor: an input of the model, or the states at a site.

    Parameters
    ----------
    name : str
        Name of the argument, or address of the site.
    value : Tensor
        Examples first.
    axis : int
        Of features (channels, units).
    mask : Bool[Tensor, "row token"] or None
        The real tokens, if the tensor has a state for each token.
    is_input : bool
    """

    name: str
    value: Tensor
    axis: int
    mask: Tensor | None
    is_input: bool


class SiteFunction:
    """A model as a function of the tensor at one site.

    At a named site the model goes on from there where it can, else it runs as a whole. It runs in
    eval mode, its parameters frozen, and is left as it was. Rows must not interact: the gradient of
    one row's objective is taken from the sum over rows.

    Parameters
    ----------
    model : Model or nn.Module
    inputs : Tensor, tuple, dict or InputBatch
        What the model is called with, examples first.
    site : pattern, default="input"
        ``input`` is every floating-point input together with the output of every table that is fed
        integers: tokens, codes of a category. Else one input of the model (``:in.right``), or a
        module's output (``layers.3``) or input (``layers.3:in``).
    keeps_graph : bool, default=False
        Keep the graph of the one forward for ``slope``; ``run`` then runs the whole model.

    Attributes
    ----------
    site : str
        The address of what is varied.
    value : Tensor
        The tensor at the site for these inputs, examples first. Several inputs are one row of
        numbers for each example, one input after another (``split``).
    inputs : tuple of str
        Names of the inputs that are varied; empty at a site inside the model.
    held : tuple of str
        What else the model reads and is not varied: integers, further tables of tokens.
    unexplained : tuple of str
        Those of ``held`` that hold integers of the example, if all inputs were to be varied.
    outputs
        What the model returns for these inputs.
    call : CallArguments
        What the inputs tell: tokens, mask.

    Raises
    ------
    SiteError
        If the site never runs, runs several times, or holds no floating-point tensor.
    InputError
        If there is no example, the inputs come with a key-value cache, or within
        ``torch.inference_mode``.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> at = SiteFunction(net, torch.ones(3, 2), "1")
    >>> at.site, at.value.shape, at.run(at.value * 0).shape
    ('1:out', torch.Size([3, 2]), torch.Size([3, 1]))
    """

    def __init__(
        self,
        model: Model | nn.Module,
        inputs: Any,
        site: Pattern = INPUT,
        *,
        keeps_graph: bool = False,
    ) -> None:
        self.module = model.module if isinstance(model, Model) else model
        check_readable(self.module)
        require_no_inference_mode()
        self._args, self._kwargs = arguments_of(self.module, inputs)
        self._root = ModuleNames(self.module).modules[""]
        self.call = CallArguments(self.module, self._args, self._kwargs)
        require_no_cache(self.call.named)
        given = named_inputs(self._root, self._args, self._kwargs)
        if any(x.ndim for x in given.values()) and all(0 in x.shape[:1] for x in given.values()):
            raise InputError("SiteFunction: expected at least one example, got none.")
        self.inputs: tuple[str, ...] = ()
        self.held: tuple[str, ...] = ()
        self.unexplained: tuple[str, ...] = ()
        self._table: TokenTable | None = None
        self._tables: tuple[TokenTable, ...] = ()
        self._site = self._found(site, keeps_graph)
        self.site = INPUT if site == INPUT and self.inputs else str(self._site)
        embedded = {table.ids: _with_places(table.value) for table in self._tables}
        self._given = {
            name: embedded[name] if name in embedded else given[name].detach()
            for name in self.inputs
        }
        self._forward: RecordedForward | None = None
        self._point: Tensor | None = None
        goes_on = not (self.inputs or keeps_graph)
        self.value, self.outputs = self._recorded(goes_on, keeps_graph)
        self.n = len(self.value)
        if not self.n:
            raise InputError(f"expected at least one example, got none at {self.site}.")

    def run(self, values: Tensor, repeats: int = 1) -> Any:
        """Return the outputs with ``values`` at the site; each example occurs ``repeats`` times."""
        if self._forward is not None:
            return self._gone_on(self._forward, values, repeats)
        with self._replacing(values) as session:
            return session.run(*self._repeated(values, repeats))

    @torch.enable_grad()
    def gradient(
        self, values: Tensor, objective: Callable[[Any], Tensor], repeats: int = 1
    ) -> tuple[Tensor, Tensor, bool]:
        """Return the objective of each row and its gradient at ``values``.

        Parameters
        ----------
        values : Tensor
            Each example's values ``repeats`` times, one after the other.
        objective : callable
            Outputs -> one number for each row.
        repeats : int, default=1

        Returns
        -------
        objective : Float[Tensor, "row"]
        gradient : Tensor
            Like ``values``.
        is_reached : bool
            Whether the objective depends on the site at all; the gradient is 0 otherwise.
        """
        point = values.detach().requires_grad_(True)
        return _slope(objective(self.run(point, repeats)), point)

    @torch.enable_grad()
    def slope(self, objective: Callable[[Any], Tensor]) -> tuple[Tensor, Tensor, bool]:
        """Return ``gradient`` at ``value``, without a forward pass while a graph is stored."""
        point, self._point = self._point, None  # the graph is gone after one backward
        if point is None:
            return self.gradient(self.value, objective)
        return _slope(objective(self.outputs), point)

    def token_vectors(self, n: int) -> Iterator[Tensor]:
        """Yield the vectors of all tokens, ``n`` at a time; nothing if no table is varied."""
        table = None if self._table is None else self._table.module
        weight = getattr(table, "weight", None)
        if table is None or not isinstance(weight, Tensor) or weight.ndim != 2:
            return
        for ids in torch.arange(len(weight), device=weight.device).split(n):
            with torch.no_grad():
                yield table(ids).detach()

    def input_of_site(self) -> tuple[nn.Module, Tensor]:
        """Return the module whose output is the site, and the first tensor that it is given.

        Raises
        ------
        SiteError
            If the site is no output of a module.
        """
        if self._site is None or self._site.port != "out":
            raise SiteError(f"SiteFunction: expected the output of a module, got {self.site}.")
        module, seen = ModuleNames(self.module).modules[self._site.path], list[Tensor]()

        def note(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(find_input(module, args, kwargs)[1].detach().clone())

        with Session(self.module, inputs=[(module, note)]):
            self.run(self.value)
        return module, seen[self._site.call if isinstance(self._site.call, int) else 0]

    @cached_property
    def feature_axis(self) -> int:
        """The axis of features (channels, units) of ``value``.

        Raises
        ------
        SiteError
            If the module's class does not tell, and probe forwards do not either.
        """
        site, x = self._site, self.value
        if x.ndim < 3 or self.inputs or site is None:
            return _axis_of_input(x)
        try:
            axes = guess_axes(x, ModuleNames(self.module).modules[site.path], self.module)
        except SiteError:
            axes = self._probed(site)
        return axes.words.index("dim")

    @property
    def parts(self) -> tuple[Varied, ...]:
        """The tensors varied together: each input, or the states at the site."""
        if not self.inputs:
            return (Varied(self.site, self.value, self.feature_axis, self.mask, False),)
        embedded = {table.ids for table in self._tables}
        return tuple(
            Varied(name, x, axis, self._mask_of(x), name not in embedded)
            for name, given in zip(self.inputs, self.split(self.value), strict=True)
            for x in [given[:, None] if given.ndim < 2 else given]
            for axis in [x.ndim - 1 if name in embedded else _axis_of_input(x)]
        )

    def split(self, values: Tensor) -> list[Tensor]:
        """Return values like ``value`` as one tensor for each part, in the part's own shape."""
        if not self._is_joined:
            return [values]
        shapes = [x.shape[1:] for x in self._given.values()]
        pieces = values.split([shape.numel() for shape in shapes], dim=1)
        return [x.reshape(len(x), *shape) for x, shape in zip(pieces, shapes, strict=True)]

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Return tensors like those of ``split`` as one tensor like ``value``."""
        if not self._is_joined:
            return parts[0]
        return torch.cat([x.reshape(len(x), -1) for x in parts], dim=1)

    @property
    def _is_joined(self) -> bool:
        return len(self._given) > 1 or any(x.ndim < 2 for x in self._given.values())

    def _probed(self, site: Site) -> Axes:
        model = Model(self.module, config=self.module.__dict__.get("config"))
        batch = self.call.inputs(self.n, None)
        call, influence = site.call if isinstance(site.call, int) else 0, Influence(model, batch)
        return find_axes(probe(model, batch), site.path, call, site.port, site.key, None, influence)

    @property
    def mask(self) -> Tensor | None:
        """The mask of real tokens, if the site has a state for each token."""
        return self._mask_of(self.value)

    def _mask_of(self, x: Tensor) -> Tensor | None:
        fed, mask = self.call.fed, self.call.mask
        if self._reads_source:
            source = self.call.inputs(len(x), None).mask
            fed, mask = source, source
        elif fed is None and x.ndim == 3:  # tokens under another name
            fed = mask
        if mask is None or fed is None or x.shape[:2] != fed.shape:
            return None
        return mask

    @cached_property
    def _reads_source(self) -> bool:
        """True if the site has an encoder's states beside a decoder, with their own tokens."""
        encoder = encoder_of(self._root)
        if encoder is None:
            return False
        if self._site is None:
            return not any("decoder" in name for name in self.inputs)
        names = ModuleNames(self.module)
        inside = {id(module) for module in encoder.modules()}
        path, around = self._site.path, names.canonical.get(id(encoder), "")
        return path.startswith(f"{around}.") or id(names.modules[path]) in inside

    def _found(self, site: Pattern, keeps_graph: bool) -> Site | None:
        """Return the site, or None if inputs are varied, and store the inputs' names."""
        named = self._root, self._args, self._kwargs
        if site != INPUT:
            (place,) = _one(resolve(self.module, site), site)
            if place.port == "grad":
                raise SiteError(
                    "SiteFunction: a gradient cannot be the site. Use the port 'out' or 'in'."
                )
            if place.path == "" and place.port == "in":
                name = name_of_input(*named, place.key)
                every = told_apart(named_inputs(*named))
                self._require_floats(name, every)
                self.inputs, self.held = (name,), tuple(n for n in every if n != name)
                place = replace(place, key=name)
            return place
        floats = float_inputs(*named, "SiteFunction")
        given = self._args, self._kwargs, keeps_graph and not floats.varied
        tables = find_token_tables(self.module, *given)
        every = told_apart(named_inputs(*named))
        codes = token_ids(every)
        if floats.varied:
            n = len(next(iter(floats.varied.values())))
            self._tables = tuple(table for table in tables if len(table.value) == n)
            varied = {*floats.varied, *(table.ids for table in self._tables)}
            self.inputs = tuple(name for name in every if name in varied)
            others = [name for table in self._tables for name in table.others]
            self.held = (*(name for name in floats.held if name not in self.inputs), *others)
            self.unexplained = tuple(name for name in self.held if name in codes)
            return None
        table = next(iter(tables), None)
        if table is None:
            raise SiteError(
                "SiteFunction: expected a floating-point input, or a module that turns each token "
                "into numbers, found none. Name a site."
            )
        self.held = (*(name for name in floats.held if name != table.ids), *table.others)
        self.unexplained = tuple(name for name in self.held if name in codes)
        self._table = table
        return table.site

    def _require_floats(self, name: str, every: dict[str, Tensor]) -> None:
        """Raise if an input holds integers, which cannot be interpolated."""
        tensor = every.get(name)
        if tensor is None or tensor.is_floating_point():
            return
        table = find_token_table(self.module, self._args, self._kwargs)
        if table is not None and table.ids == name:
            words = f"Name the module that turns its tokens into numbers: {table.site}."
        else:
            words = "Name a module after it, whose output can be varied."
        kind = str(tensor.dtype).removeprefix("torch.")
        raise SiteError(
            f"SiteFunction: expected a floating-point input at :in.{name}, got {kind}. {words}"
        )

    def _gone_on(self, forward: RecordedForward, values: Tensor, repeats: int) -> Any:
        """Return the outputs of the model's part after the site.

        That part takes all examples, then all again; ``values`` has an example's copies together.
        """
        assert self._site is not None  # only a named site is gone on from
        with Session(self.module, with_grad=True), torch.enable_grad():
            if repeats == 1:
                return forward.from_site(self._site, values)
            output = forward.from_site(self._site, _turned(values, self.n))
        n = len(values)
        return changed(output, lambda _, x: _turned(x, repeats) if x.ndim and len(x) == n else x)

    def _recorded(self, goes_on: bool, keeps_graph: bool) -> tuple[Tensor, Any]:
        if self._table is not None:
            self._point = self._table.point
            return self._table.value, self._table.outputs
        seen: list[Tensor] = []

        def note(value: Tensor) -> Tensor | None:
            seen.append(value)
            if not keeps_graph:
                return None
            self._point = value.detach().requires_grad_(True)
            return self._point.clone()  # what comes next may work in place

        if self.inputs:
            value = self.joined([*self._given.values()])
            point = note(value)
            return value, self.run(value if point is None else point)
        with self._hooked(lambda leaf: note(leaf.detach().clone())) as session:
            if goes_on:
                self._forward = record_forward(self.module, *self._args, **self._kwargs)
                outputs = self._forward.output
            else:
                outputs = session.run(self._args, self._kwargs)
        if len(seen) != 1:
            raise SiteError(
                f"SiteFunction: expected {self._site} to run once, but it ran {len(seen)} times. "
                "Name one of its calls (@0) or another site."
            )
        return seen[0], outputs

    @contextmanager
    def _replacing(self, values: Tensor) -> Iterator[Session]:
        if self.inputs:
            pieces = dict(zip(self.inputs, self.split(values), strict=True))
            outputs = [
                (table.module, self._from_table(table, pieces[table.ids])) for table in self._tables
            ]
            with Session(self.module, outputs, with_grad=True) as session:
                yield session
        else:
            # A copy: what comes next may work in place, and the values are a leaf of the graph.
            with self._hooked(lambda leaf: values.to(leaf).clone()) as session:
                yield session

    def _from_table(self, table: TokenTable, values: Tensor) -> Callable[[Any], Any]:
        """Return a hook that lets a table return ``values``, in the call that was found."""
        calls = [0]

        def after(output: Any) -> Any:
            calls[0] += 1
            leaf = find(output, None)
            if leaf is None or (
                isinstance(table.site.call, int) and calls[0] - 1 != table.site.call
            ):
                return None
            return replaced(output, leaf, values.reshape(leaf.shape).to(leaf).clone())

        return after

    @contextmanager
    def _hooked(self, act: Callable[[Tensor], Tensor | None]) -> Iterator[Session]:
        site, calls = self._site, [0]
        assert site is not None  # the input needs no hook
        module = ModuleNames(self.module).modules[site.path]

        def is_turn() -> bool:
            calls[0] += 1
            return not isinstance(site.call, int) or calls[0] - 1 == site.call

        def after(output: Any) -> Any:
            leaf = find(output, site.key)
            if leaf is None or not is_turn():
                return None
            new = act(leaf)
            return None if new is None else replaced(output, leaf, new)

        def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not is_turn():
                return None
            leaf = find_input(module, args, kwargs, site.key)[1]
            new = act(leaf)
            return None if new is None else with_input(args, kwargs, leaf, new)

        outputs = [(module, after)] if site.port == "out" else []
        inputs = [(module, before)] if site.port == "in" else []
        with Session(self.module, outputs, inputs, with_grad=True) as session:
            yield session

    def _repeated(self, values: Tensor, repeats: int) -> Args:
        new = dict(zip(self.inputs, self.split(values), strict=True)) if self.inputs else {}
        new = {name: x for name, x in new.items() if name not in {t.ids for t in self._tables}}

        def again(name: str, x: Tensor) -> Tensor:
            if name in new:
                return new[name].to(x).clone()
            fits = repeats > 1 and x.ndim > 0 and len(x) == self.n
            return x.repeat_interleave(repeats, dim=0) if fits else x

        return with_inputs(self._root, self._args, self._kwargs, again)


def _with_places(x: Tensor) -> Tensor:
    """Return states with an axis of places: a single code of an example is one place."""
    return x[:, None] if x.ndim == 2 else x


def _axis_of_input(x: Tensor) -> int:
    return x.ndim - 1 if x.ndim < 4 else 1


def _slope(found: Tensor, point: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Return each row's objective, its gradient, and whether it depends on the point."""
    if not found.requires_grad:
        return found.detach(), torch.zeros_like(point), False
    (gradient,) = torch.autograd.grad(found.sum(), point, allow_unused=True)
    if gradient is None:
        return found.detach(), torch.zeros_like(point), False
    return found.detach(), gradient, True


def _turned(x: Tensor, first: int) -> Tensor:
    """Return rows of (first, second) as rows of (second, first)."""
    return x.unflatten(0, (first, -1)).transpose(0, 1).flatten(0, 1)


def require_no_inference_mode() -> None:
    """Raise in ``torch.inference_mode``, whose tensors have no gradients or version counters.

    Raises
    ------
    InputError
    """
    if torch.is_inference_mode_enabled():
        raise InputError(
            "expected a model that can be run again with gradients, got torch.inference_mode(). "
            "Make the inputs and call outside of inference mode; torch.no_grad() is allowed."
        )


def arguments_of(module: nn.Module, inputs: Any) -> Args:
    """Return the arguments of a call: of a batch, a tensor, a tuple, or a mapping of names."""
    if isinstance(inputs, InputBatch):
        return place_of(module, inputs).call(inputs.args, inputs.kwargs)
    if is_dict(inputs):
        return (), {str(name): value for name, value in inputs.items()}
    if hasattr(inputs, "keys"):  # what a tokenizer returns
        return (), {str(name): inputs[name] for name in inputs.keys()}  # noqa: SIM118
    return (inputs if is_tuple(inputs) else (inputs,)), {}


def _one(found: list[Site], site: Pattern) -> list[Site]:
    if len(found) != 1:
        raise SiteError(
            f"SiteFunction: expected one site, got {str(site)!r}, which names {len(found)}. Name "
            "one of them."
        )
    return found
