"""Facts about each part of a model by name, beside its weights and its configuration.

The hashes say that two models differ; these facts say in what: the class of a module, a setting, an
attribute that a forward reads, an active adapter, packed weights, a hook, a replaced method.
"""

import dis
import hashlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from functools import cache, partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from sonde.files.part_facts import ADAPTER, SOFT, Facts, folded
from sonde.tap.hooks.inert import Hook
from sonde.tap.hooks.names import ModuleNames, own_class
from sonde.tap.model.forward_code import (
    LIBRARIES,
    forward_functions,
    instructions,
    package,
    used_names,
)
from sonde.tap.model.structure import DEVICE, HOW_IT_RUNS, settings
from sonde.tap.model.tensor_bytes import tensor_hash
from sonde.tap.model.written import written_attributes

OF_TORCH = frozenset(vars(nn.Module())) | {"cls_to_become", "_load_hook", "_initialize_hook"}
"""Attributes that torch keeps on every module; its lazy modules keep the last three until a call.
"""
SKIPPED = HOW_IT_RUNS | OF_TORCH | {"config", "layer_idx", "_hf_hook", "_old_forward"}
HARMLESS = frozenset({"torch", "transformers", "accelerate", "sonde"})
"""Packages whose hooks and methods say how a model runs, or show in its weights."""
CHANGES = frozenset(
    {"append", "extend", "insert", "pop", "popitem", "update", "clear", "setdefault", "add"}
    | {"remove", "discard", "appendleft", "popleft", "copy_", "fill_", "zero_", "add_", "mul_"}
)
NEAR, DEEPEST, LONGEST, MOST = 6, 4, 60, 1000


class Uses(NamedTuple):
    """Attributes that code reads, assigns, whose contents it changes, writes into; and globals."""

    read: frozenset[str] = frozenset()
    assigned: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()
    of_globals: frozenset[str] = frozenset()


def parts(module: nn.Module) -> Facts:
    """Return what each part of a model is and how it is set, by name.

    A name with ``*`` stands for all its layers, if they are equal. Attributes count if a forward
    reads them and none changes them. A text that begins with ``?`` is of something that may
    change without changing the result: a hook, a container, a function without a name.

    Parameters
    ----------
    module : Module
        Module whose parts are described.

    Examples
    --------
    >>> parts(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.LayerNorm(3)))["1"]
    'ReLU()'
    """
    facts: Facts = {}
    modules = ModuleNames(module).modules
    kinds = dict.fromkeys(own_class(part) for part in modules.values())
    own = [kind for kind in kinds if package(kind) not in LIBRARIES]
    uses = _uses(own)
    for path, part in modules.items():
        for name, text in _of_part(part, uses):
            facts[f"{path}.{name}" if path and name else path or name] = text
    for kind in own:
        facts |= _of_class(kind, uses)
    for name in ("_global_forward_hooks", "_global_forward_pre_hooks"):
        facts |= dict(_hooks(name.removeprefix("_global_"), getattr(global_hooks, name)))
    if adapters := active_adapters(modules.values()):
        facts[ADAPTER] = adapters
    return folded(facts)


def _of_part(part: nn.Module, uses: Uses) -> Iterator[tuple[str, str]]:
    kind = own_class(part)
    library = package(kind) in LIBRARIES
    is_torch = package(kind) == "torch"
    soft = "" if is_torch or not library else SOFT  # versions of transformers rename classes
    options = "" if soft else settings(part)
    yield "", f"{soft}{kind.__name__}({options})"
    if library:
        uses = _own_names(kind)
    for name, value in vars(part).items():
        if name in SKIPPED or name.startswith("_is_hf") or name in uses.assigned:
            continue
        if (name == "forward" or callable(getattr(kind, name, None))) and callable(value):
            yield from _replaced(kind, name, value)
        elif isinstance(value, torch.ScriptObject):
            yield name, _packed(value)
        elif name in uses.read and not (library and "drop" in name):
            if isinstance(value, Tensor) and name in uses.written:
                continue
            text, is_plain = _said(value)
            if is_plain and is_torch and options:
                continue  # the settings of torch's own modules say it
            if text is not None and (is_plain or name not in uses.changed):
                yield name, text if is_plain else f"{SOFT}{text}"
    yield from _hooks("forward_hooks", part._forward_hooks)
    yield from _hooks("forward_pre_hooks", part._forward_pre_hooks)
    if library and package(kind.forward) not in (package(kind), *HARMLESS):
        yield "forward", SOFT + _function(kind.forward)


def _replaced(kind: type, name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield a method that an instance has in the place of its class's, unless torch put it."""
    value = getattr(value, "_torchdynamo_orig_callable", value)
    function = value.func if isinstance(value, partial) else value
    function = getattr(function, "__func__", function)
    if function is not getattr(kind, name, None) and package(function) not in HARMLESS:
        yield name, SOFT + _function(function)


def _hooks(name: str, hooks: Mapping[int, Any]) -> Iterator[tuple[str, str]]:
    others = [
        hook
        for hook in hooks.values()
        if not isinstance(hook, Hook) and package(hook) not in HARMLESS
    ]
    if others:
        yield name, SOFT + ", ".join(map(_function, others))


def _of_class(kind: type[nn.Module], uses: Uses) -> Facts:
    """Return plain attributes of a class and globals of its module that a forward reads."""
    facts: Facts = {}
    classes = [base for base in kind.__mro__ if package(base) not in (*LIBRARIES, "builtins")]
    spaces = [(vars(base), uses.read - uses.assigned) for base in classes]
    module = vars(sys.modules.get(kind.__module__, SimpleNamespace()))
    for space, counted in (*spaces, (module, uses.of_globals)):
        for name in counted & space.keys():
            if name.startswith("__") or not isinstance(space[name], bool | int | float | str):
                continue
            facts.setdefault(f"{kind.__name__}:{name}", _said(space[name])[0] or "")
    return facts


def active_adapters(modules: Iterable[nn.Module]) -> str:
    """Return the adapters of PEFT that act, those that are merged, and their scales."""
    names_active: dict[str, None] = {}
    for part in modules:
        held = vars(part)
        if not type(part).__module__.startswith("peft.tuners") or "_active_adapter" not in held:
            continue
        active = held["_active_adapter"]
        names = [active] if isinstance(active, str) else list(active)
        scales = held.get("scaling") or {}
        scaled = [f"{n!r} x {scales[n]:g}" if n in scales else repr(n) for n in names]
        scaled += [f"{n!r} (merged)" for n in held.get("merged_adapters") or ()]
        names_active.update(
            dict.fromkeys(["none (disabled)"] if held.get("_disable_adapters") else scaled)
        )
    return ", ".join(names_active)


def _said(value: Any) -> tuple[str | None, bool]:
    """Return a value as text, None if it says nothing, and whether it is certainly the same."""
    if isinstance(value, str) and DEVICE.fullmatch(value):
        return None, True
    if isinstance(value, bool | int | float | complex | str | bytes):
        return _short(repr(value)), True
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} {tensor_hash(value)[:12]}", True
    if isinstance(value, FunctionType | BuiltinFunctionType):
        of_torch = isinstance(value, BuiltinFunctionType) or package(value) in LIBRARIES
        return _function(value), of_torch
    if is_dataclass(value) and not isinstance(value, type):
        members = {f.name: getattr(value, f.name, None) for f in fields(value)}
        return _text(members, frozenset()), True
    if isinstance(value, tuple) and all(x is None or _said(x)[1] for x in value):
        return _text(value, frozenset()), True
    if value is None or isinstance(value, nn.Module | type | torch.dtype | torch.device):
        return None, True
    return _text(value, frozenset()), False


def _text(value: Any, above: AbstractSet[int]) -> str:
    """Return a container, function or object as text without addresses."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype):
        return repr(value)
    if isinstance(value, Tensor):
        return tensor_hash(value)[:12]
    if isinstance(value, torch.ScriptObject):
        return _packed(value)
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(value.tobytes()).hexdigest()[:12]
        return f"{value.dtype} {value.shape} {digest}"
    if isinstance(value, FunctionType | BuiltinFunctionType):
        return _function(value)
    name = type(value).__qualname__
    if id(value) in above or len(above) > DEEPEST or isinstance(value, nn.Module | type):
        return name
    inside = above | {id(value)}
    if isinstance(value, Mapping):
        inner = [f"{_text(k, inside)}: {_text(v, inside)}" for k, v in [*value.items()][:MOST]]
    elif isinstance(value, list | tuple | set | frozenset):
        ordered = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        inner = [_text(x, inside) for x in ordered[:MOST]]
    elif isinstance(value, MethodType):
        return _short(f"{_function(value)} of {_text(value.__self__, inside)}")
    elif isinstance(value, partial):
        inner = [_text(x, inside) for x in (value.func, value.args, value.keywords)]
    elif package(type(value)) in (*LIBRARIES, "builtins", "threading"):
        return name
    else:
        slots = [n for base in type(value).__mro__ for n in getattr(base, "__slots__", ())]
        held = {n: getattr(value, n, None) for n in slots if not n.startswith("__")}
        held |= getattr(value, "__dict__", {})
        inner = [f"{k}={_text(v, inside)}" for k, v in [*held.items()][:MOST]]
    return _short(f"{name}({', '.join(inner)})")


def _short(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST // 2]}... ({hashlib.sha256(text.encode()).hexdigest()[:12]})"


def _packed(value: Any) -> str:
    """Return the hash of what a packed object holds, or its class if it does not say."""
    try:
        state = value.__getstate__()
    except Exception:  # each class of packed weights raises its own
        return type(value).__name__
    return f"packed {hashlib.sha256(_text(state, frozenset()).encode()).hexdigest()[:12]}"


def _function(value: Any) -> str:
    """Return a function's name; with a hash of its code and values if its name is not enough."""
    value = getattr(value, "__func__", value)
    if isinstance(value, partial):
        return _text(value, frozenset())
    code, name = getattr(value, "__code__", None), getattr(value, "__qualname__", None)
    if code is None or package(value) in LIBRARIES:
        place = getattr(value, "__module__", None)
        return f"{place}.{name or type(value).__name__}".replace("torch.nn.functional.", "F.")
    cells = [_cell(cell) for cell in value.__closure__ or ()]
    held = [value.__defaults__, value.__kwdefaults__, *cells]
    digest = hashlib.sha256(f"{instructions(code)} {_text(held, frozenset())}".encode())
    return f"{name} ({digest.hexdigest()[:8]})"


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _uses(kinds: Iterable[type[nn.Module]]) -> Uses:
    """Return the names that the forwards of classes read, assign and change inside."""
    uses = [_names(tuple(forward_functions(kind))) for kind in kinds]
    together = (frozenset[str]().union(*names) for names in zip(*uses, strict=True))
    return Uses(*together) if uses else Uses()


@cache
def _own_names(kind: type[nn.Module]) -> Uses:
    """Return the uses of names in the methods of a library's class that its forward calls."""
    waiting: list[Any] = [getattr(kind, "forward", None)]
    seen = dict[CodeType, None]()
    while waiting:
        code = getattr(inspect.unwrap(waiting.pop()), "__code__", None)
        if code is not None and code not in seen:
            seen[code] = None
            names = used_names(code).of_attributes
            waiting += [f for n in names if callable(f := getattr(kind, n, None))]
    return _names(tuple(seen))


@cache
def _names(codes: tuple[CodeType, ...]) -> Uses:
    """Return the names that code reads, assigns as attributes, changes inside, and writes into."""
    read, assigned, changed, written = set[str](), set[str](), set[str](), set[str]()
    of_globals = set[str]()
    waiting = list(codes)
    while waiting:
        code = waiting.pop()
        waiting += [c for c in code.co_consts if isinstance(c, CodeType)]
        texts = [c for c in code.co_consts if isinstance(c, str)]  # of ``getattr(self, "how")``
        read |= {*used_names(code).of_attributes, *texts}
        of_globals |= {*used_names(code).of_globals}
        written |= written_attributes(code)
        steps = list(dis.get_instructions(code))
        for i, step in enumerate(steps):
            before = [s.argval for s in steps[max(0, i - NEAR) : i] if s.opname == "LOAD_ATTR"]
            if step.opname == "STORE_ATTR":
                assigned.add(step.argval)
            elif step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR"):
                changed.update(before)
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and step.argval in CHANGES:
                changed.update(before[-1:])
    return Uses(*map(frozenset, (read, assigned, changed, written, of_globals)))
