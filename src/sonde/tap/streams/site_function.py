"""A live model as a differentiable function of one of its tensors: an input or states."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from sonde.tap.hooks.call import CallArguments
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import find, find_input, leaves, replaced, with_input
from sonde.tap.hooks.session import Session, check_readable
from sonde.tap.model.axes import Axes, find_axes, guess_axes
from sonde.tap.model.influence import Influence
from sonde.tap.model.input_types import place_of
from sonde.tap.model.probe import probe
from sonde.tap.model.sites import Pattern, resolve

INPUT = "input"
Args = tuple[tuple[Any, ...], dict[str, Any]]


class SiteFunction:
    """What a model makes of its inputs when the tensor at one site has other values.

    At a named site the model goes on from there where it can, else it runs as a whole. It runs in
    eval mode, its parameters frozen, and is left as it was. Rows must not interact: the gradient of
    one row's objective is taken from the sum over rows.

    Parameters
    ----------
    model : Model or nn.Module
    inputs : Tensor, tuple, dict or InputBatch
        What the model is called with, examples first.
    site : pattern, default="input"
        ``input`` is the first floating-point input; for a model of tokens, the output of its
        embedding. Else a module's output (``layers.3``) or input (``layers.3:in``).
    keeps_graph : bool, default=False
        Keep the graph of the one forward for ``slope``; ``run`` then runs the whole model.

    Attributes
    ----------
    site : str
        The address of what is varied.
    value : Tensor
        The tensor at the site for these inputs, examples first.
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
        self.call = CallArguments(self.module, self._args, self._kwargs)
        require_no_cache(self.call.named)
        self._site = self._found(site)
        self.site = INPUT if self._site is None else str(self._site)
        self._forward: RecordedForward | None = None
        self._point: Tensor | None = None
        self.value, self.outputs = self._recorded(site != INPUT and not keeps_graph, keeps_graph)
        self.n = len(self.value)
        if not self.n:
            raise InputError(f"expected at least one example, got none at {self.site}.")

    def run(self, values: Tensor, repeats: int = 1) -> Any:
        """Return the outputs with ``values`` at the site; each example comes ``repeats`` times."""
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
        """Return ``gradient`` at ``value``; without a forward while a graph is kept."""
        point, self._point = self._point, None  # the graph is gone after one backward
        if point is None:
            return self.gradient(self.value, objective)
        return _slope(objective(self.outputs), point)

    def input_of_site(self) -> tuple[nn.Module, Tensor]:
        """Return the module whose output the site is, and the first tensor that it is given.

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
        if x.ndim < 3 or site is None:
            return x.ndim - 1 if x.ndim < 4 else 1
        try:
            found = guess_axes(x, ModuleNames(self.module).modules[site.path], self.module)
        except SiteError:
            found = self._probed(site)
        return found.words.index("dim")

    def _probed(self, site: Site) -> Axes:
        model = Model(self.module, config=self.module.__dict__.get("config"))
        batch = self.call.inputs(self.n, None)
        call, influence = site.call if isinstance(site.call, int) else 0, Influence(model, batch)
        return find_axes(probe(model, batch), site.path, call, site.port, site.key, None, influence)

    @property
    def mask(self) -> Tensor | None:
        """The real tokens of each example, where the site has a state for each token."""
        fed, mask = self.call.fed, self.call.mask
        if mask is None or fed is None or self.value.shape[:2] != fed.shape:
            return None
        return mask

    def _found(self, site: Pattern) -> Site | None:
        if site != INPUT:
            (found,) = _one(resolve(self.module, site), site)
            if found.port == "grad":
                raise SiteError("SiteFunction: gradients are no site. Name the port out or in.")
            return found
        if any(x.is_floating_point() for x in leaves((self._args, self._kwargs)).values()):
            return None
        names = ModuleNames(self.module)
        get = getattr(self.module, "get_input_embeddings", None)
        embedding = get() if callable(get) else None
        if embedding is None:
            embedding = next(
                (m for m in self.module.modules() if isinstance(m, nn.Embedding)), None
            )
        if not isinstance(embedding, nn.Module):
            raise SiteError(
                "SiteFunction: expected a floating-point input or an embedding of tokens, found "
                "none. Name a site."
            )
        return Site(names.canonical[id(embedding)])

    def _gone_on(self, forward: RecordedForward, values: Tensor, repeats: int) -> Any:
        """Return the outputs of the part of the model after the site.

        That part takes all examples, then all again; ``values`` has an example's copies together.
        """
        assert self._site is not None  # only a named site is gone on from
        with Session(self.module, with_grad=True), torch.enable_grad():
            if repeats == 1:
                return forward.from_site(self._site, values)
            output = forward.from_site(self._site, _turned(values, self.n))
        n = len(values)
        return _mapped(output, lambda x: _turned(x, repeats) if x.ndim and len(x) == n else x)

    def _recorded(self, goes_on: bool, keeps_graph: bool) -> tuple[Tensor, Any]:
        seen: list[Tensor] = []

        def note(value: Tensor) -> Tensor | None:
            seen.append(value)
            if not keeps_graph:
                return None
            self._point = value.detach().requires_grad_(True)
            return self._point.clone()  # what comes next may work in place

        if self._site is None:
            value = find_input(self.module, self._args, self._kwargs)[1].detach()
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
                f"SiteFunction: expected {self._site} to run once, it ran {len(seen)} times. Name "
                "one of its calls (@0) or another site."
            )
        return seen[0], outputs

    @contextmanager
    def _replacing(self, values: Tensor) -> Iterator[Session]:
        if self._site is None:
            with Session(self.module, with_grad=True) as session:
                yield session
        else:
            # A copy: what comes next may work in place, and the values are a leaf of the graph.
            with self._hooked(lambda leaf: values.to(leaf).clone()) as session:
                yield session

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
        args, kwargs = self._args, self._kwargs
        is_input = self._site is None
        old = find_input(self.module, args, kwargs)[1] if is_input else None

        def again(x: Tensor) -> Tensor:
            if x is old:
                return values.to(x).clone()
            fits = repeats > 1 and x.ndim > 0 and len(x) == self.n
            return x.repeat_interleave(repeats, dim=0) if fits else x

        new_args = tuple(_mapped(value, again) for value in args)
        return new_args, {name: _mapped(value, again) for name, value in kwargs.items()}


def _slope(found: Tensor, point: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Return the objective of each row, its gradient, and whether it depends on the point."""
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
    """Refuse ``torch.inference_mode``: its tensors have no gradient, and no count of changes.

    Raises
    ------
    InputError
    """
    if torch.is_inference_mode_enabled():
        raise InputError(
            "expected a model that can be run again with gradients, got torch.inference_mode(). "
            "Make the inputs and call outside of it; within torch.no_grad() it works."
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


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    for x in leaves(value).values():
        value = replaced(value, x, change(x))
    return value


def _one(found: list[Site], site: Pattern) -> list[Site]:
    if len(found) != 1:
        raise SiteError(
            f"SiteFunction: expected one site, {str(site)!r} names {len(found)}. Name one of them."
        )
    return found
