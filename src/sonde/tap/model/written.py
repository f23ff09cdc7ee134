"""Attributes whose tensors a method writes into, read from its instructions."""

import dis
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import CodeType
from typing import Any, NamedTuple

STORES = ("STORE_SUBSCR", "STORE_SLICE")
CALLS = ("LOAD_ATTR", "LOAD_METHOD")
OF_GRAPH = ("requires_grad_", "detach_")
"""Methods that leave the numbers of a tensor as they are."""


class Step(NamedTuple):
    """One instruction: its name, its argument as text and value, and what it adds to the stack."""

    opname: str
    text: str
    argval: Any
    effect: int


def written_attributes(code: CodeType) -> set[str]:
    """Return the names of attributes that code writes into, whole or in part, also by a variable.

    Writing is a method in place, an assignment to a part, or ``out=``. A tensor that arithmetic
    makes from an attribute is another tensor.

    Parameters
    ----------
    code : CodeType
        Code of a function.

    Examples
    --------
    >>> def forward(self, x):
    ...     part = self.out[: len(x)]
    ...     return part.copy_(x), (x * self.scale).add_(1)
    >>> written_attributes(forward.__code__)
    {'out'}
    """
    steps = list(_steps(code))
    alias: dict[str, str] = {}
    attributes: set[str | None] = set()
    for i, step in enumerate(steps):
        if step.opname == "STORE_FAST" and (name := _attribute(steps, i, alias)):
            alias[step.argval] = name
        elif step.opname in CALLS and _is_in_place(step.argval):
            attributes.add(_attribute(steps, i, alias))
        elif step.opname in STORES:
            attributes.add(_attribute(steps, _before_index(steps, i), alias))
        elif "out" in (names := _keywords(steps, i)):
            end = i
            for _ in names[names.index("out") + 1 :]:
                end = _start(steps, end)
            attributes.add(_attribute(steps, end, alias))
    return {name for name in attributes if name is not None}


def _steps(code: CodeType) -> Iterator[Step]:
    """Yield the instructions of code; those of two variables at once are two."""
    for step in dis.get_instructions(code):
        name, value = step.opname, step.argval
        if name == "KW_NAMES":
            value = code.co_consts[step.arg or 0]
        if name.count("_FAST") == 2 and isinstance(value, tuple):
            kinds = [kind.strip("_") for kind in name.split("_FAST")[:2]]
            for kind, variable in zip(kinds, value, strict=True):
                yield Step(f"{kind}_FAST", variable, variable, 1 if kind == "LOAD" else -1)
        else:
            effect = dis.stack_effect(step.opcode, step.arg, jump=False)
            yield Step(name, step.argrepr, value, effect)


def _is_in_place(method: str) -> bool:
    return method.endswith("_") and method[0] != "_" and method not in OF_GRAPH


def _keywords(steps: Sequence[Step], i: int) -> tuple[str, ...]:
    """Return the names of the keyword arguments of a call that begins with this step."""
    step = steps[i]
    if step.opname == "KW_NAMES":
        return step.argval
    is_call = i + 1 < len(steps) and steps[i + 1].opname == "CALL_KW"
    return step.argval if is_call and isinstance(step.argval, tuple) else ()


def _before_index(steps: Sequence[Step], end: int) -> int:
    """Return where the container of an assignment to a part is complete."""
    n_index = 2 if steps[end].opname == "STORE_SLICE" else 1
    if steps[end - 1].opname == "SWAP":  # x[i] += y holds x and i twice
        copies = [i for i in range(end) if steps[i].opname == "COPY"]
        ends = [b for a, b in pairwise([-1, *copies]) if b != a + 1]
        end = ends[-1] if ends else end
    for _ in range(n_index):
        end = _start(steps, end)
    return end


def _start(steps: Sequence[Step], end: int) -> int:
    """Return the first step of the expression whose value is the topmost before step ``end``."""
    depth = 0
    for i in range(end - 1, -1, -1):
        depth += steps[i].effect
        if depth >= 1:
            return i
    return 0


def _attribute(steps: Sequence[Step], end: int, alias: dict[str, str]) -> str | None:
    """Return the attribute whose tensor, or a part of it, is the topmost value, or None."""
    start = _start(steps, end)
    if start >= end or not steps[start].opname.startswith("LOAD_FAST"):
        return None
    depth, first = 1, steps[start].argval
    for step in steps[start + 1 : end]:
        depth += step.effect
        is_part = step.opname in ("LOAD_ATTR", "BINARY_SUBSCR", "BINARY_SLICE")
        if depth == 1 and not is_part and step.text != "[]":
            return None
    if start + 1 < end and steps[start + 1].opname == "LOAD_ATTR" and first not in alias:
        return steps[start + 1].argval
    return alias.get(first) if isinstance(first, str) else None
