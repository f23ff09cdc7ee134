"""Straight-line arithmetic with a tool, so that every value can be checked."""

import re
from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar, final

from sonde_studies.worlds.world import Fault, World

OPERATIONS = {"add": "+", "subtract": "-", "multiply": "*"}
INPUTS = "abcd"
_LINE = re.compile(r"^(v\d+) = (add|subtract|multiply)\((-?\d+), (-?\d+)\)$")
_REPORT = re.compile(r"^report\((-?\d+)\)$")


@dataclass(frozen=True)
class Line:
    """One operation of a program: ``name = left operation right``."""

    name: str
    operation: str
    left: str
    right: str


@dataclass(frozen=True)
class Sum:
    """Given values, and a program whose last value must be reported."""

    given: tuple[tuple[str, int], ...]
    program: tuple[Line, ...]


@dataclass(frozen=True)
class Sheet:
    """The known values, and the report."""

    values: tuple[tuple[str, int], ...]
    reported: int | None = None

    def known(self) -> dict[str, int]:
        """Return the values by name."""
        return dict(self.values)


@final
@dataclass(frozen=True)
class Calculator(World[Sum, Sheet]):
    """Operations modulo 1,000 by a tool with numeric inputs; the last value is reported.

    Parameters
    ----------
    shortest, longest : int
        Operations of a program.
    """

    shortest: int = 3
    longest: int = 18
    name: ClassVar[str] = "calculator"

    def draw(self, source: Random) -> Sum:
        """Return a chain of operations, each on the last value and another value."""
        given = tuple((name, source.randint(2, 99)) for name in INPUTS)
        names, program = list(INPUTS), []
        for number in range(1, source.randint(self.shortest, self.longest) + 1):
            left = f"v{number - 1}" if number > 1 else source.choice(names)
            pair = [left, source.choice([n for n in names if n != left])]
            source.shuffle(pair)
            program.append(Line(f"v{number}", source.choice([*OPERATIONS]), *pair))
            names.append(f"v{number}")
        return Sum(given, tuple(program))

    def text(self, task: Sum) -> str:
        """Return the values and the program."""
        given = ", ".join(f"{name} = {value}" for name, value in task.given)
        lines = ", ".join(
            f"{x.name} = {x.left} {OPERATIONS[x.operation]} {x.right}" for x in task.program
        )
        last = task.program[-1].name
        return f"Modulo 1000, with {given}, work out {lines} one by one. Report {last}."

    def start(self, task: Sum) -> Sheet:
        """Return the given values."""
        return Sheet(task.given)

    def act(self, task: Sum, state: Sheet, action: str) -> tuple[Sheet, str]:
        """Compute and store a value, or accept a report."""
        if found := _LINE.match(action):
            name, value = found[1], _value(found[2], int(found[3]), int(found[4]))
            values = {**state.known(), name: value}
            return replace(state, values=tuple(values.items())), f"{name} = {value}"
        if found := _REPORT.match(action):
            return replace(state, reported=int(found[1])), f"reported {found[1]}"
        return state, "error: no such tool"

    def decide(self, task: Sum, state: Sheet) -> str | None:
        """Return the first operation with an unknown value, then the report."""
        known = state.known()
        for line in task.program:
            if line.name not in known:
                return _call(line.name, line.operation, known[line.left], known[line.right])
        return None if state.reported is not None else f"report({known[task.program[-1].name]})"

    def thought(self, task: Sum, state: Sheet, action: str) -> str:
        """Describe the next action."""
        found = _LINE.match(action)
        if found is None:
            return "All is worked out, so I report."
        return f"Next is {found[1]}, from {found[3]} and {found[4]}."

    def is_solved(self, task: Sum, state: Sheet) -> bool:
        """Return whether the correct value was reported."""
        known = dict(task.given)
        for line in task.program:
            known[line.name] = _value(line.operation, known[line.left], known[line.right])
        return state.reported == known[task.program[-1].name]

    def failures(self, task: Sum, state: Sheet, source: Random) -> list[Fault[Sheet]]:
        """Return another tool, another name's value, and a value that is slightly off."""
        action = self.decide(task, state)
        others = sorted({value for _, value in state.values})
        if action is None:
            return []
        if found := _REPORT.match(action):
            return [Fault(f"report({value})", state) for value in others if value != int(found[1])]
        found = _LINE.match(action)
        assert found is not None  # the agent's actions are operations or reports
        name, operation, pair = found[1], found[2], [int(found[3]), int(found[4])]
        tools = [_call(name, other, *pair) for other in OPERATIONS if other != operation]
        place = source.randrange(2)
        off = pair[place] + source.choice([-10, -2, -1, 1, 2, 10])
        swapped = [value for value in others if value != pair[place]]
        arguments = [source.choice(swapped)] if swapped else []
        wrong = [[*pair[:place], value, *pair[place + 1 :]] for value in (*arguments, off % 1000)]
        calls = [source.choice(tools), *(_call(name, operation, *values) for values in wrong)]
        return [Fault(call, state) for call in calls]

    def detours(
        self, task: Sum, state: Sheet, done: list[str], source: Random
    ) -> list[Fault[Sheet]]:
        """Return repeated operations whose value is already known."""
        return [Fault(action, state) for action in done if _LINE.match(action)]

    def extras(
        self, task: Sum, state: Sheet, done: list[str], source: Random
    ) -> list[Fault[Sheet]]:
        """Return an additional operation, or a second report."""
        known = state.known()
        fresh = f"v{1 + sum(_LINE.match(action) is not None for action in done)}"
        pair = [source.choice([*known.values()]) for _ in range(2)]
        calls = [_call(fresh, source.choice([*OPERATIONS]), *pair), f"report({state.reported})"]
        return [Fault(call, state) for call in calls]


def _value(operation: str, left: int, right: int) -> int:
    total = {"add": left + right, "subtract": left - right, "multiply": left * right}[operation]
    return total % 1000


def _call(name: str, operation: str, left: int, right: int) -> str:
    return f"{name} = {operation}({left}, {right})"
