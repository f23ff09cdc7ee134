"""Find and replace tensors inside the inputs and outputs of modules."""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from sonde.core.errors import SiteError
from sonde.core.model_config import is_encoder_decoder
from sonde.tap.hooks.packed_sequences import is_ordered, packed_like, unpacked
from sonde.tap.hooks.port_view import PortView

DEEPEST = 4


def leaves(output: Any) -> dict[str, Tensor]:
    """Return the tensors in a module's output by key, in order.

    A lone tensor has the key ``""``; members of tuples are numbered, those of mappings and
    dataclasses named; deeper ones are joined by ``_`` (``"1_0"``). A packed sequence is one nested
    tensor. Objects that are none of these (caches) hold no leaves.
    """
    return dict(_walk(output, "", 0))


def _walk(output: Any, key: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        yield key, output
    elif isinstance(output, PackedSequence) and is_ordered(output):
        yield key, unpacked(output)
    elif depth < DEEPEST:
        for name, member in _members(output):
            yield from _walk(member, f"{key}_{name}" if key else name, depth + 1)


def _members(output: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(output, Mapping):
        return ((str(name), member) for name, member in output.items())
    if isinstance(output, tuple | list):
        return [(str(index), member) for index, member in enumerate(output)]
    if is_dataclass(output) and not isinstance(output, type):
        return [(f.name, getattr(output, f.name)) for f in fields(output)]
    return []


def find(output: Any, key: str | None) -> Tensor | None:
    """Return the leaf ``key``, or the first floating-point tensor if ``key`` is None."""
    if isinstance(output, Tensor):
        return output if (key is None and output.is_floating_point()) or key in ("", "0") else None
    if key is None:
        return next((x for _, x in _walk(output, "", 0) if x.is_floating_point()), None)
    if isinstance(output, PortView):
        return output.get(key)
    if isinstance(output, PackedSequence) and key == "0":
        key = ""
    return leaves(output).get(key)


def replaced(output: Any, old: Tensor, new: Tensor) -> Any:
    """Return ``output`` with the tensor ``old`` replaced by ``new``; containers are copied."""
    if output is old:
        return new
    if isinstance(output, Tensor):
        return output
    if isinstance(output, PortView):
        return {key: new if leaf is old else leaf for key, leaf in output.made.items()}
    if isinstance(output, PackedSequence) and is_ordered(output):
        return packed_like(output, new) if unpacked(output) is old else output
    if isinstance(output, Mapping):
        return _with_items(output, old, new)
    if isinstance(output, tuple | list):
        members = [replaced(member, old, new) for member in output]
        is_named = isinstance(output, tuple) and hasattr(output, "_fields")
        make: Any = type(output)
        return make(*members) if is_named else make(members)
    if is_dataclass(output) and not isinstance(output, type):
        members = {f.name: replaced(getattr(output, f.name), old, new) for f in fields(output)}
        return replace(output, **members)
    return output


def _with_items(output: Mapping[str, Any], old: Tensor, new: Tensor) -> Any:
    return _made(output, {name: replaced(member, old, new) for name, member in output.items()})


def _made(like: Mapping[str, Any], members: dict[str, Any]) -> Any:
    make: Any = type(like)
    return make(**members) if is_dataclass(like) else make(members)


def changed(value: Any, change: Callable[[str, Tensor], Tensor], key: str = "") -> Any:
    """Return a value with ``change(key, tensor)`` for each leaf; containers are copied.

    Keys are those of ``leaves``, after ``key``. A tensor that occurs twice is changed at each key.
    """
    if isinstance(value, Tensor):
        return change(key, value)
    if isinstance(value, PackedSequence) and is_ordered(value):
        return packed_like(value, change(key, unpacked(value)))
    if not leaves(value):
        return value
    new = {
        name: changed(member, change, f"{key}_{name}" if key else name)
        for name, member in _members(value)
    }
    if isinstance(value, Mapping):
        return _made(value, {name: new[str(name)] for name in value})
    if isinstance(value, tuple | list):
        is_named = isinstance(value, tuple) and hasattr(value, "_fields")
        make: Any = type(value)
        return make(*new.values()) if is_named else make(new.values())
    return replace(value, **new) if new else value


def copied(value: Any) -> Any:
    """Return a value with copied tensors and containers."""
    for x in leaves(value).values():
        value = replaced(value, x, x.detach().clone())
    return value


def find_input(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], key: str | None = None
) -> tuple[str, Tensor]:
    """Return the name and value of a module's main input tensor.

    It is the first floating-point tensor of ``args``, else ``hidden_states``, else the first
    floating-point keyword argument in the order of the signature; ``key`` names another argument,
    by its name or position, or a tensor inside one (``named_inputs``).
    """
    named = _named_arguments(module, args, kwargs)
    if key is not None:
        value = named.get(key)
        if isinstance(value, Tensor):
            return key, value
        inside = named_inputs(module, args, kwargs)
        if key in inside:
            return key, inside[key]
        raise SiteError(
            f"Site: expected an input tensor {key!r} of {type(module).__name__}, "
            f"got inputs {sorted(inside)}."
        )
    for index, value in enumerate(args):
        tensor = find(value, None)
        if tensor is not None:
            return str(index), tensor
    if isinstance(kwargs.get("hidden_states"), Tensor):
        return "hidden_states", kwargs["hidden_states"]
    for name, value in named.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            return name, value
    raise SiteError(
        f"Site: {type(module).__name__} got no floating-point tensor as input. Read its output."
    )


def with_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], old: Tensor, new: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a call's arguments with a tensor replaced, unchanged if it is not among them."""

    def exchanged(value: Any) -> Any:
        has = any(leaf is old for leaf in leaves(value).values())
        return replaced(value, old, new) if has else value

    return tuple(map(exchanged, args)), {name: exchanged(v) for name, v in kwargs.items()}


def _named_arguments(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    bound = arguments(module, args, kwargs)
    named = {name: bound[name] for name in bound if name in kwargs} | kwargs
    return {str(i): a for i, a in enumerate(args)} | named


def named_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Tensor]:
    """Return the tensors of a call by argument name, in the order of the signature.

    A tensor inside a tuple or a mapping has its number or key after the name of the argument
    (``pair_0``, ``batch_left``). An argument that the signature does not name has its number.

    Examples
    --------
    >>> import torch
    >>> sorted(named_inputs(nn.Bilinear(1, 1, 1), (torch.zeros(1),), {"input2": torch.ones(1)}))
    ['input1', 'input2']
    """
    names, order = _positional(module, args), list(_parameters(module))
    rank = {name: order.index(name) if name in order else len(order) for name in kwargs}
    every = [*zip(names, args, strict=True), *sorted(kwargs.items(), key=lambda one: rank[one[0]])]
    return {
        f"{name}_{key}" if key else name: x
        for name, value in every
        for key, x in leaves(value).items()
    }


def with_inputs(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    change: Callable[[str, Tensor], Tensor],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with ``change(name, tensor)`` for each of their tensors."""
    names = _positional(module, args)
    new = tuple(changed(v, change, name) for name, v in zip(names, args, strict=True))
    return new, {name: changed(v, change, name) for name, v in kwargs.items()}


def name_of_input(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], key: str | None
) -> str:
    """Return the name in ``named_inputs`` of the tensor that ``find_input`` returns.

    Raises
    ------
    SiteError
        If there is no such tensor.
    """
    place, x = find_input(module, args, kwargs, key)
    named = named_inputs(module, args, kwargs)
    if place in named:
        return place
    start = _positional(module, args)[int(place)]
    inside = [name for name in named if name == start or name.startswith(f"{start}_")]
    return next(name for name in inside if named[name] is x)


def _positional(module: nn.Module, args: tuple[Any, ...]) -> list[str]:
    """Return the name of each positional argument."""
    parameters = list(_parameters(module).values())
    return [_name_at(i, parameters) for i in range(len(args))]


def _parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return {}


def _name_at(i: int, parameters: list[inspect.Parameter]) -> str:
    one = parameters[min(i, len(parameters) - 1)] if parameters else None
    if one is None or one.kind in (one.KEYWORD_ONLY, one.VAR_KEYWORD):
        return str(i)
    is_rest = one.kind is one.VAR_POSITIONAL
    return f"{one.name}_{i - parameters.index(one)}" if is_rest else one.name


def arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by name, or the keywords alone if they do not fit the signature."""
    try:
        return dict(_signature(module.forward).bind(*args, **kwargs).arguments) | kwargs
    except (TypeError, ValueError):
        return dict(kwargs)


def known_names(module: nn.Module) -> Collection[str]:
    """Return the names of all parameters of a module's forward."""
    try:
        return _signature(module.forward).parameters.keys()
    except (TypeError, ValueError):
        return ()


_SIGNATURES: WeakKeyDictionary[Callable[..., Any], inspect.Signature] = WeakKeyDictionary()


def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a forward method, cached for methods of classes."""
    if not isinstance(forward, MethodType):
        return inspect.signature(forward)
    signature = _SIGNATURES.get(forward.__func__)
    if signature is None:
        signature = _SIGNATURES[forward.__func__] = inspect.signature(forward)
    return signature


def decodes(root: nn.Module, named: Mapping[str, Any]) -> bool:
    """Return whether a call runs a decoder with its own tokens beside an encoder."""
    if named.get("decoder_input_ids") is not None or named.get("decoder_inputs_embeds") is not None:
        return True
    return is_encoder_decoder(root.__dict__.get("config"))
