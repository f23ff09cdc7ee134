"""Memory that scoring needs, estimated before the start."""

from dataclasses import dataclass

import torch

from sonde.core.errors import InputError
from sonde.core.plan import UNIT_SIZE
from sonde.core.reduction import AUTO
from sonde.core.state import size_bytes
from sonde.core.stream import Stream
from sonde.core.wording import gib
from sonde.engine.derived import innermost
from sonde.run.fitting.fitted import Fitted
from sonde.run.passes.memory import (
    BASE,
    COPIES,
    SLACK,
    allowed_bytes,
    forward_bytes_of,
    rows_of_an_example,
)
from sonde.run.scoring.batches import reduction_of
from sonde.tap import LiveStream

LINE_BYTES = 64
"""Of a line of the table: its numbers, and where its texts end."""
TABLES = 2
"""The table of the batches, and the table in the order of the data."""
UNIT_BYTES = 64
"""Of a line for each layer, unit and position that it names."""


@dataclass(frozen=True)
class ScoringNeeds:
    """Peak memory that scoring needs.

    Parameters
    ----------
    scorers_bytes : int
        The states of a bundle and its detectors, in each process.
    rows_bytes : int
        A batch of rows, in each process.
    n_lines : int
        Lines of the table; 0 if no table is kept.
    table_bytes : int
    n_processes : int, default=1
    forward_bytes : int, default=0
        Tensors of a forward pass of the largest batch, in each process.
    """

    scorers_bytes: int
    rows_bytes: int
    n_lines: int
    table_bytes: int
    n_processes: int = 1
    forward_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Sum of all parts."""
        each = self.scorers_bytes + COPIES * self.rows_bytes + self.forward_bytes
        return round(SLACK * (self.n_processes * each + self.table_bytes)) + BASE * self.n_processes


def needs_of_scoring(
    fitted: Fitted,
    stream: Stream,
    *,
    workers: int = 0,
    reduction: str = AUTO,
    explain: int = 0,
    keeps_table: bool = True,
) -> ScoringNeeds:
    """Return the peak memory of scoring a stream."""
    n, per = len(stream), rows_of_an_example(stream)
    width = {s.key: s.dim * getattr(torch, s.dtype).itemsize for s in stream.schema}
    live = innermost(stream)
    inputs = live.inputs if isinstance(live, LiveStream) else None
    asked = getattr(inputs, "batch_size", UNIT_SIZE)
    one = sum(per[key] * size for key, size in width.items())
    n_lines = table = 0
    for task, name in zip(fitted.tasks, fitted.names, strict=True):
        if name not in fitted.scorers or not keeps_table:
            continue
        whole = reduction_of(fitted, task, reduction) is not None
        lines = round(n * (1 if whole else per.get(task.keys[0], 1)))
        n_lines += lines
        table += TABLES * lines * (LINE_BYTES + sum(map(len, name)) + explain * UNIT_BYTES)
    held = sum(map(size_bytes, [*fitted.states.values(), *fitted.scorers.values()]))
    rows, forward = round(min(n, asked) * one), forward_bytes_of(stream)
    return ScoringNeeds(held, rows, n_lines, table, workers + 1, forward)


def check_scoring_memory(needed: ScoringNeeds, limit: int | None, command: str = "score") -> None:
    """Raise if scoring does not fit in memory.

    Raises
    ------
    InputError
        With what it takes, what is allowed, and how to need less; or if the limit is invalid.
    """
    allowed = allowed_bytes(limit)
    if needed.total_bytes > allowed:
        each = f", in each of {needed.n_processes} processes" if needed.n_processes > 1 else ""
        table = f", a table of {needed.n_lines:,} lines {gib(needed.table_bytes)}"
        raise InputError(
            f"{command}: this needs about {gib(needed.total_bytes)} (the detectors "
            f"{gib(needed.scorers_bytes)}, a batch of rows {gib(needed.rows_bytes)}, a forward "
            f"pass {gib(needed.forward_bytes)}{each}{table if needed.n_lines else ''}), but "
            f"{gib(allowed)} are allowed. Take a smaller --batch-size, fewer --workers or less "
            "of the data (--limit), or raise --memory."
        )
