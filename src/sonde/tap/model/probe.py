"""Probe forward pass: which modules run, how often and in which order, and output axes.

A model is run on two rows, on three, and on two of another length or image size. The axes that
follow tell rows, tokens and space apart from features; nothing is guessed from names.
"""

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sonde.core.errors import SiteError
from sonde.core.inputs import InputBatch, Model
from sonde.core.repacking import is_linear
from sonde.core.site import ATTENTION_PORTS
from sonde.tap.attention.opening import watch_attention
from sonde.tap.attention.places import calls_functions, is_attention
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import find, find_input, leaves
from sonde.tap.hooks.port_view import PortView
from sonde.tap.hooks.session import Session, check_readable
from sonde.tap.model.features import FeatureAxes, by_class, by_kind_of_pool
from sonde.tap.model.forward_errors import forward_on
from sonde.tap.model.input_types import place_of
from sonde.tap.model.placement import Place
from sonde.tap.model.seeding import untouched
from sonde.tap.model.vary import SizeChange, changes, sized

ROWS = (2, 3)
_log = logging.getLogger("sonde")


@dataclass(frozen=True)
class TensorLayout:
    """Shape, type and layout of one tensor; a nested tensor counts as padded.

    ``features`` is its feature axis, if the module that made it tells. ``is_nested`` says that each
    row has tokens of its own number.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    features: int | None = field(default=None, compare=False)
    layout: torch.layout = torch.strided
    is_nested: bool = field(default=False, compare=False)


@dataclass
class ModuleCall:
    """One call of a module: its start and end, its inputs and outputs.

    ``got`` and ``gave`` number the tensors of one forward: the same number is the same tensor.
    ``ports`` are what an attention made inside: when, and its leaves.
    """

    start: int
    end: int = -1
    outputs: dict[str, TensorLayout] = field(default_factory=dict)
    input: TensorLayout | None = None
    got: int | None = None
    gave: int | None = None
    ports: dict[str, tuple[int, dict[str, TensorLayout]]] = field(default_factory=dict)


Trace = dict[str, list[ModuleCall]]


@dataclass(frozen=True, eq=False)
class Probe:
    """Results of the probe forward passes.

    Parameters
    ----------
    names : ModuleNames
        The modules by name.
    trace, other, resized : dict of str to list of ModuleCall
        The calls of each module on two rows, on three, and on two rows of another size; ``other``
        and ``resized`` are None if the model runs on one number of rows, or at one size, only.
    change : SizeChange
        What another size is.
    logits : (key, shape) or None
        The leaf of the model's output that holds logits.
    output : dict of str to TensorLayout
        Leaves of the model's output.
    head : str or None
        Name of the final linear layer, if its output is the logits.
    place : Place
        Where the model takes its inputs, and in which types.
    heads : dict of str to str
        Tensors of the model's output that a linear layer made, and its name.
    probabilities : frozenset of str
        Modules whose rows are never negative and add up to 1.
    moved : tuple of str
        Buffers that a forward pass in eval mode changes: running averages, counters.
    """

    names: ModuleNames
    trace: Trace
    other: Trace | None
    resized: Trace | None
    change: SizeChange
    output: dict[str, TensorLayout]
    head: str | None
    place: Place
    heads: Mapping[str, str] = field(default_factory=dict)
    probabilities: frozenset[str] = frozenset()
    moved: tuple[str, ...] = ()

    def calls(self, path: str) -> int:
        """Return how often a module ran in one forward pass."""
        return len(self.trace.get(path, ()))

    def order(self, path: str, call: int, port: str) -> int:
        """Return the rank at which a port's tensor was computed in one forward pass."""
        at = self.trace[path][call]
        if port in at.ports:
            return at.ports[port][0]
        return at.start if port == "in" else at.end

    @property
    def n_forwards(self) -> int:
        """Number of forward passes that were run."""
        return sum(trace is not None for trace in (self.trace, self.other, self.resized))

    def leaf(
        self, path: str, call: int, port: str, key: str | None
    ) -> tuple[TensorLayout, TensorLayout | None]:
        """Return one tensor on two rows, and its layout on three rows of another size.

        Where another size changes the number of rows (``x.view(-1, 784)`` on larger images), the
        rows are not the examples then: such a tensor is taken at the size of the data.
        """
        first = _leaf(self.trace[path][call], port, key, path)
        more, larger = (
            _other_leaf(trace, path, call, port, key) for trace in (self.other, self.resized)
        )
        if more is None or larger is None:
            return first, more
        return first, _combined(first, more, larger)


def _other_leaf(
    trace: Trace | None, path: str, call: int, port: str, key: str | None
) -> TensorLayout | None:
    try:
        return None if trace is None else _leaf(trace[path][call], port, key, path)
    except (KeyError, IndexError, SiteError):
        return None


def _combined(first: TensorLayout, more: TensorLayout, larger: TensorLayout) -> TensorLayout:
    """Return a layout that combines the changes of more rows and of a larger size."""
    shapes = (first.shape, more.shape, larger.shape)
    if len({len(shape) for shape in shapes}) > 1:
        return more
    sizes = list(zip(*shapes, strict=True))
    if any(size[:2] == ROWS and size[2] != ROWS[0] for size in sizes):
        return more
    return TensorLayout(tuple(n if n != one else other for one, n, other in sizes), first.dtype)


def _leaf(call: ModuleCall, port: str, key: str | None, path: str) -> TensorLayout:
    if port == "in":
        if call.input is None:
            raise SiteError(f"Site: {path!r} got no floating-point tensor. Read its output.")
        return call.input
    if port in ATTENTION_PORTS and port not in call.ports:
        raise SiteError(
            f"Site: {path!r} ran, but its {port} could not be read: the module calls no kernel "
            f"that exposes them. Readable ports: {', '.join(call.ports) or 'none'}. With "
            "transformers, load the model with attn_implementation='sdpa'."
        )
    outputs = call.ports[port][1] if port in call.ports else call.outputs
    if key is not None:
        if key in outputs or (key == "0" and "" in outputs):
            return outputs.get(key) or outputs[""]
        raise SiteError(
            f"Site: {path!r} returns no tensor {key!r}, only {sorted(filter(None, outputs))}. "
            f"Write one of these keys after the port, as in {path}:{port}.KEY."
        )
    for leaf in outputs.values():
        if leaf.dtype.is_floating_point:
            return leaf
    raise SiteError(
        f"Site: {path!r} returns no floating-point tensor, only "
        f"{ {k: str(v.dtype) for k, v in call.outputs.items()} or 'nothing' }. Read another module."
    )


def probe(model: Model, batch: InputBatch, inside: Collection[str] = ()) -> Probe:
    """Run the model on repeats of one batch's first rows and record every module.

    Parameters
    ----------
    model : Model
        Model that is probed.
    batch : InputBatch
        Batch whose first rows are used.
    inside : collection of str, default=()
        Ports of attentions that are recorded too.

    Raises
    ------
    SiteError
        If the model is of a kind that hooks cannot read.
    """
    check_readable(model.module, sharded=True)
    _check_shaped(model.module)
    with untouched(model.module) as moved:
        probed = _probed(model, batch, inside)
    return replace(probed, moved=tuple(moved))


def _check_shaped(root: nn.Module) -> None:
    """Raise if weights have no shape yet, since a probe pass would fix it at its own size."""
    for name, x in chain(root.named_parameters(), root.named_buffers()):
        if is_lazy(x):
            raise SiteError(
                f"Site: expected weights with a shape, got {name!r} of a lazy layer that has never "
                "run. Run the model once on inputs of its own size: model(x)."
            )


def _probed(model: Model, batch: InputBatch, inside: Collection[str]) -> Probe:
    names = ModuleNames(model.module)
    place = place_of(model.module, batch)
    recorder = _Recorder(model, names, batch, place, inside)
    *resized, same = changes(batch)
    for change in resized:
        try:
            larger = recorder.whole(change, ROWS[0], 1)[0]
            (trace, output, head), (other, _, _) = (recorder.whole(change, n, 0) for n in ROWS)
        except SiteError:
            raise
        except Exception as error:  # whatever a model raises at a size that it is not made for
            _log.debug("probe: the model does not run at another size: %s", error)
        else:
            if _resizes_features(names, trace, larger):
                continue  # a model may take any number of features
            return Probe(names, trace, other, larger, change, output, head, place, *recorder.ends)
    with forward_on(batch, first=True):
        trace, output, head = recorder.run(same, ROWS[0], 0)
    try:
        other = recorder.run(same, ROWS[1], 0)[0]
    except Exception as error:  # a model for one batch size only
        _log.debug("probe: the model does not run on three rows: %s", error)
        return Probe(names, trace, None, None, same, output, head, place, *recorder.ends)
    return Probe(names, trace, other, None, same, output, head, place, *recorder.ends)


def _resizes_features(names: ModuleNames, trace: Trace, larger: Trace) -> bool:
    """Return whether a larger input changed only the feature axis of a layer's input."""
    for path, calls in trace.items():
        module, got = names.modules[path], calls[0].input
        more = larger[path][0].input if path in larger else None
        if got is None or more is None or module._modules or len(got.shape) != len(more.shape):
            continue
        axis = by_class(module, len(got.shape))
        if axis is None and got.features is None:
            axis = by_kind_of_pool(module, len(got.shape))
        if [i for i, n in enumerate(got.shape) if n != more.shape[i]] == [axis]:
            return True
    return False


class _Recorder:
    """Runs the model at one size with a hook on every module."""

    def __init__(
        self,
        model: Model,
        names: ModuleNames,
        batch: InputBatch,
        place: Place,
        inside: Collection[str] = (),
    ) -> None:
        self.model, self.names, self.batch, self.place = model, names, batch, place
        self.inside = [
            (m, port, partial(self._inside, name, port))
            for name, m in names.primary()
            if inside and (is_attention(m) or calls_functions(m))
            for port in inside
        ]

    def whole(
        self, change: SizeChange, n_rows: int, which: int
    ) -> tuple[Trace, dict[str, TensorLayout], str | None]:
        """Run the model, and raise if it swallowed an error of one of its modules."""
        trace = self.run(change, n_rows, which)
        failed = [name for name, calls in self.open.items() if calls]
        if failed:
            raise RuntimeError(f"{', '.join(failed)} raised an error that the model caught")
        return trace

    def run(
        self, change: SizeChange, n_rows: int, which: int
    ) -> tuple[Trace, dict[str, TensorLayout], str | None]:
        args, kwargs = self.place.call(*sized(self.batch, change, n_rows, which))
        self.trace: Trace = {}
        self.tick = self.count = 0
        self.open: dict[str, list[tuple[ModuleCall, int, Tensor | None]]] = {}
        self.linear: dict[str, Tensor] = {}
        self.known: dict[int, tuple[ReferenceType[Tensor], int]] = {}
        self.features = FeatureAxes(getattr(self.model.config, "hidden_size", None))
        modules = list(self.names.primary())
        session = Session(
            self.model.module,
            outputs=[(m, partial(self._after, name, m)) for name, m in modules],
            inputs=[(m, partial(self._before, name, m)) for name, m in modules],
            inside=watch_attention(self.inside),
            restores=False,  # the probe asks which buffers move
            parts="show",
        )
        with session:
            output = session.run(args, kwargs)
        tensors = {key: x for key, x in leaves(output).items() if x.is_floating_point()}
        makers = {key: self._maker(x) for key, x in tensors.items()}
        heads = {key: name for key, name in makers.items() if name is not None}
        self.ends = heads, frozenset(key for key, x in tensors.items() if _adds_up(x))
        logits = find_logits(output)
        head = None if logits is None else self._maker(logits)
        return self.trace, _described(output, self.features), head

    def _before(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        call = ModuleCall(self.tick)
        self.tick += 1
        try:
            given = find_input(module, args, kwargs)[1]
            call.input, call.got = _describe(given, self.features), self._number(given)
        except SiteError:
            given = call.input = None
        self.open.setdefault(name, []).append((call, self.features.enter(), given))

    def _after(self, name: str, module: nn.Module, output: Any) -> None:
        call, depth, given = self.open[name].pop()
        self.features.leave(module, depth, given, leaves(output))
        call.end, call.outputs = self.tick, _described(output, self.features)
        call.gave = self._number(find(output, None))
        self.tick += 1
        self.trace.setdefault(name, []).append(call)
        if is_linear(module) and isinstance(output, Tensor) and not output.is_nested:
            self.linear[name] = output.clone()  # what follows may change it in place

    def _inside(self, name: str, port: str, view: PortView) -> None:
        call = self.open[name][-1][0]
        layouts = {key: replace(_describe(x, self.features), features=2) for key, x in view.items()}
        call.ports[port] = self.tick, layouts
        self.tick += 1

    def _number(self, x: Tensor | None) -> int | None:
        """Return a tensor's index; a new tensor in reused memory gets a new index."""
        if x is None:
            return None
        seen = self.known.get(id(x))
        if seen is None or seen[0]() is not x:
            self.count += 1
            self.known[id(x)] = seen = (ref(x), self.count)
        return seen[1]

    def _maker(self, x: Tensor) -> str | None:
        """Return the linear layer that computed a tensor."""
        if x.is_nested:
            return None
        for name, value in reversed(self.linear.items()):
            if value.shape == x.shape and torch.equal(value.to(x.device), x):
                return name
        return None


def _adds_up(x: Tensor) -> bool:
    """Return whether rows are probabilities that sum to 1."""
    if x.is_nested or x.ndim != 2 or x.shape[1] < 2 or bool((x < 0).any()):
        return False
    return bool(((x.double().sum(1) - 1).abs() < 1e-2).all())


def find_logits(output: Any, key: str | None = None) -> Tensor | None:
    """Return the logits of an output: the leaf ``key``, else ``logits``, or the output itself.

    One number for each example, ``(example,)``, becomes a column.
    """
    if key is not None:
        logits = find(output, key)
        return logits.unsqueeze(1) if logits is not None and logits.ndim == 1 else logits
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    logits = find(output, "logits")
    return logits if logits is not None and logits.is_floating_point() else None


def _described(output: Any, known: FeatureAxes) -> dict[str, TensorLayout]:
    return {key: _describe(x, known) for key, x in leaves(output).items()}


def _describe(x: Tensor, known: FeatureAxes) -> TensorLayout:
    if x.is_nested:
        parts = x.unbind()
        longest = max((len(p) for p in parts), default=0)
        shape = (len(parts), longest, *parts[0].shape[1:])
        return TensorLayout(shape, x.dtype, is_nested=True)
    return TensorLayout(tuple(x.shape), x.dtype, known.of(x), x.layout)


def executed(found: Probe) -> Iterator[str]:
    """Yield the names of modules that ran, in the order in which their first call ended."""
    yield from sorted(found.trace, key=lambda name: found.trace[name][0].end)
