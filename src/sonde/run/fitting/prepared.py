"""Preparation of a fit before it reads its first row."""

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import torch

from sonde.core.calibration import needed_scores
from sonde.core.errors import InputError
from sonde.core.instrument import Detector, Instrument
from sonde.core.plan import Split
from sonde.core.stream import Stream
from sonde.core.wording import plural
from sonde.engine.requests import Task
from sonde.run.fitting.group_counts import split_draws
from sonde.run.instruments.asked import check_grids, head_sites, ready
from sonde.run.instruments.tasks import assign
from sonde.run.instruments.words import Asked, instruments_of
from sonde.run.reading.notes import warn_of_split
from sonde.run.reading.read import read

USUAL_RATE = 0.1


@dataclass(frozen=True)
class Prepared:
    """A stream that serves all instruments, with their tasks at its sites and the held-out rows."""

    stream: Stream
    tasks: tuple[Task, ...]
    split: Split | None
    n_groups: int = 0
    n_held: int = 0

    @property
    def notes(self) -> list[str]:
        """Return notes on the false-alarm rate that the few held-out groups can guarantee."""
        least = needed_scores(USUAL_RATE, "marginal", 0.0)
        if self.split is None or self.n_held >= least:
            return []
        if self.n_groups < 2:
            return [
                "with only one group, no rows can be held out, so detectors have no p-values "
                "and no thresholds. Give several groups, or calibrate on other rows "
                "(calibrate=0, then sonde.calibrate)."
            ]
        are = "is" if self.n_held == 1 else "are"
        return [
            f"{self.n_held} of {plural(self.n_groups, 'group')} {are} held out, so no "
            f"false-alarm rate below {1 / (self.n_held + 1):.0%} can be guaranteed; a rate of "
            f"{USUAL_RATE:.0%} needs {plural(least, 'held-out group')}. Hold out more "
            "(calibrate), or calibrate on other rows (sonde.calibrate)."
        ]


def prepare(
    instruments: Asked | Iterable[Asked],
    stream: Stream | str | Path,
    calibrate: float | int,
    reduction: str,
) -> Prepared:
    """Assign methods to sites, and hold out groups if a detector is among the instruments.

    Raises
    ------
    InputError
        If there is no data, no instrument, or the stream cannot serve an instrument.
    """
    if isinstance(instruments, Stream):
        raise InputError("fit: expected instruments, then a stream, got a stream first.")
    chosen = [copy(one) for one in instruments_of(instruments)]
    if not isinstance(stream, Stream | str | Path):
        raise InputError(
            f"fit: expected a stream or the folder of a store, got {type(stream).__name__}. Of a "
            "model: sonde.fit(METHOD, sonde.read(model, data)); of rows: METHOD.fit(rows)."
        )
    stream = stream if isinstance(stream, Stream) else read(stream)
    _check(chosen, stream)
    warn_of_split(stream)
    stream = ready(chosen, stream)
    is_split = bool(calibrate) and any(isinstance(i, Detector) for i in chosen)
    draws = split_draws(stream) if is_split else torch.empty(0, dtype=torch.int64)
    split = Split(calibrate, stream.seed).of_groups(draws) if is_split else None
    heads = head_sites(chosen, stream)
    tasks = assign(chosen, stream.schema, split, reduction, heads, grouped=stream.grouped)
    check_grids(tasks, stream)
    n_held = 0 if split is None else int(split.is_held(draws).sum())
    return Prepared(stream, tuple(tasks), split, len(draws), n_held)


def _check(instruments: Sequence[object], stream: Stream) -> None:
    if not instruments:
        raise InputError("fit: expected at least one instrument, got none.")
    for instrument in instruments:
        if not isinstance(instrument, Instrument):
            raise InputError(
                f"fit: expected instruments such as Mahalanobis(), got {instrument!r}."
                + (" Call it: add ()." if isinstance(instrument, type) else "")
            )
    if len(stream) == 0:
        raise InputError("fit: expected at least one example, got none. The data is empty.")
