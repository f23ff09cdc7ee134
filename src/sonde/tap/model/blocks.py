"""The blocks of a model: the modules that its residual stream passes in sequence.

They are found from lists of modules and from what a probe forward saw: the order of calls, the
shapes that are kept, and which tensor went from one module into the next.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from sonde.tap.hooks.names import ModuleNames
from sonde.tap.model.probe import ROWS, ModuleCall, Probe, TensorLayout

MAP = 4
"""Least number of axes of a map: row, channel, height and width."""


@dataclass(frozen=True)
class _List:
    """Modules that run in sequence under one parent; ``mixed`` if of several classes."""

    path: str
    members: tuple[str, ...]
    composite: bool
    mixed: bool = False


def block_paths(names: ModuleNames, probe: Probe | None) -> list[str]:
    """Return the blocks of a model, in order of execution if it is known.

    They are the members of each outermost list of modules, of one class or of several through which
    one stream runs: each takes the shape that the one before returned, and keeps it. Members that
    take one tensor side by side (experts, an ensemble), or whole numbers (embeddings), are not
    depth. Where such lists are called themselves and return maps (the stages of a convolutional
    net), the lists are the blocks.
    Without such a list, blocks may be attributes of one module.
    """
    lists = _outermost(_deeper(_lists(names, probe)))
    if probe is not None and not any(x.composite for x in lists):
        lists = _outermost(_named(probe)) or lists
    if any(x.composite for x in lists):
        lists = [x for x in lists if x.composite]
    if probe is not None and len(lists) > 1 and all(_is_stage(x, probe) for x in lists):
        paths = [x.path for x in lists]
    else:
        paths = [m for x in lists for m in x.members if probe is None or probe.calls(m)]
    paths = list(dict.fromkeys(names.canonical[id(names.modules[p])] for p in paths))
    if probe is None:
        return paths
    return sorted(paths, key=lambda p: probe.trace[p][0].end)


def has_float(path: str, probe: Probe) -> bool:
    """Return whether a module that ran returned a floating-point tensor."""
    return _returned(probe.trace[path][0]) is not None


def _lists(names: ModuleNames, probe: Probe | None) -> list[_List]:
    lists = []
    for path, module in names.primary():
        if isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict):
            members = _members(path, names, probe)
            if members:
                mixed = not _one_class([names.modules[m] for m in members])
                lists.append(_List(path, members, any(map(names.children, members)), mixed))
    return lists


def _members(path: str, names: ModuleNames, probe: Probe | None) -> tuple[str, ...]:
    """Return the members of a list if a residual stream runs through them, else ()."""
    members = tuple(names.children(path))
    of_one_class = _one_class([names.modules[m] for m in members])
    if probe is None:
        return members if of_one_class and len(members) > 1 else ()
    ran = tuple(m for m in members if probe.calls(m))
    if not of_one_class:
        return _stream(ran, probe)
    calls = _in_order(ran, probe)
    apart = len(ran) > 1 and all(_side_by_side(a, b) for (_, a), (_, b) in pairwise(calls))
    apart |= all(call.input is None and not probe.names.children(m) for m, call in calls)
    is_read = all(has_float(m, probe) for m in ran) and any(_has_rows(m, probe) for m in ran)
    return ran if len(calls) > 1 and is_read and not apart else ()


def _one_class(modules: Sequence[nn.Module]) -> bool:
    """Return whether all modules are instances of the class of one of them."""
    return any(all(isinstance(m, type(one)) for m in modules) for one in modules)


def _named(probe: Probe) -> list[_List]:
    """Return blocks stored as attributes of one module.

    Each takes the very tensor that the one before returned.
    """
    lists, names = [], probe.names
    for path, _ in names.primary():
        ran = [m for m in names.children(path) if probe.calls(m)]
        for run in _runs(ran, probe, _hands_on):
            blocks = _between_kept(run, probe)
            if len(blocks) > 1 and 2 * len(blocks) >= sum(bool(names.children(m)) for m in ran):
                lists.append(_List(path, blocks, True))
    return lists


def _stream(members: Sequence[str], probe: Probe) -> tuple[str, ...]:
    """Return the members with parts if a stream passes two or more that keep its shape.

    Among maps one member that keeps the shape is enough; members that change the size count too.
    """
    calls = _in_order(members, probe)
    kept = [_between_kept(run, probe) for run in _runs(members, probe, _leads)]
    if not any(kept):
        return ()
    parted = [m for m, _ in calls if probe.names.children(m)]
    if all(_is_map(probe.trace[m][0]) for m in parted):
        return tuple(dict.fromkeys(parted)) if len(parted) > 1 else ()
    return _between_kept(calls, probe) if max(map(len, kept)) > 1 else ()


Step = tuple[str, ModuleCall]


def _runs(
    members: Sequence[str], probe: Probe, leads: Callable[[ModuleCall, ModuleCall], bool]
) -> list[list[Step]]:
    """Return the module calls in order, split where one call's output is not the next's input."""
    runs: list[list[Step]] = []
    for step in _in_order(members, probe):
        if runs and leads(runs[-1][-1][1], step[1]):
            runs[-1].append(step)
        else:
            runs.append([step])
    return runs


def _between_kept(run: Sequence[Step], probe: Probe) -> tuple[str, ...]:
    """Return the modules with parts from the first to the last that keeps its input's shape."""
    blocks = [(m, call) for m, call in run if probe.names.children(m)]
    keeps = [i for i, (_, call) in enumerate(blocks) if _keeps(call)]
    chosen = blocks[keeps[0] : keeps[-1] + 1] if keeps else []
    return tuple(dict.fromkeys(m for m, _ in chosen))


def _in_order(members: Sequence[str], probe: Probe) -> list[Step]:
    calls = [(m, call) for m in members for call in probe.trace[m]]
    return sorted(calls, key=lambda step: step[1].end)


def _hands_on(one: ModuleCall, then: ModuleCall) -> bool:
    return one.gave is not None and one.gave == then.got


def _leads(one: ModuleCall, then: ModuleCall) -> bool:
    return _shape(_returned(one)) == _shape(then.input) and not _side_by_side(one, then)


def _keeps(call: ModuleCall) -> bool:
    return call.input is not None and _shape(_returned(call)) == _shape(call.input)


def _shape(leaf: TensorLayout | None) -> tuple[int, ...] | None:
    return None if leaf is None else leaf.shape


def _side_by_side(one: ModuleCall, other: ModuleCall) -> bool:
    """Return whether two calls take one tensor that the first call does not return."""
    return one.got is not None and one.got == other.got != one.gave


def _returned(call: ModuleCall) -> TensorLayout | None:
    return next((x for x in call.outputs.values() if x.dtype.is_floating_point), None)


def _has_rows(path: str, probe: Probe) -> bool:
    """Return whether an axis of a module's output follows the number of examples."""
    first, other = probe.leaf(path, 0, "out", None)
    if other is None or len(other.shape) != len(first.shape):
        return ROWS[0] in first.shape
    return ROWS in zip(first.shape, other.shape, strict=True)


def _is_map(call: ModuleCall) -> bool:
    tensor = _returned(call)
    return tensor is not None and len(tensor.shape) >= MAP


def _deeper(lists: Sequence[_List]) -> list[_List]:
    """Return the lists, without mixed lists that hold a list at least as long."""
    long = [
        (x, [y for y in lists if y.composite and len(y.members) >= len(x.members)]) for x in lists
    ]
    return [x for x, more in long if not (x.mixed and any(_holds(x.path, y.path) for y in more))]


def _outermost(lists: Sequence[_List]) -> list[_List]:
    return [x for x in lists if not any(_holds(y.path, x.path) for y in lists)]


def _holds(outer: str, inner: str) -> bool:
    return outer != inner and (outer == "" or inner.startswith(f"{outer}."))


def _is_stage(one: _List, probe: Probe) -> bool:
    return probe.calls(one.path) == 1 and _is_map(probe.trace[one.path][0])
