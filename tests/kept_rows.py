"""A statistic that keeps every row as it came, so that a test can compare it with anything."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sonde.core.instrument import Every, Where
from sonde.core.plan import Part
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.engine.requests import Request


@dataclass(frozen=True)
class Rows(State):
    """Every row, in the order seen: what a test can compare with anything."""

    x: Tensor
    calls: int = 1


@dataclass(frozen=True)
class Keep(Statistic[Rows]):
    column: str = "x"
    seen: ClassVar[list[int]] = []

    def needs(self) -> tuple[str, ...]:
        return (self.column,)

    def observe(self, x: Tensor) -> Rows:
        self.seen.append(len(x))
        return Rows(x.clone())

    def merge(self, a: Rows, b: Rows) -> Rows:
        return Rows(torch.cat([a.x, b.x]), a.calls + b.calls)


def one(
    statistic: Statistic, *keys: str, where: Where | None = None, part: Part = "all"
) -> dict[str, Request]:
    request = Request(statistic, keys, where or Every(), part)
    return {request.id: request}
