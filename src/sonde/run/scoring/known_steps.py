"""Test whether scores find the first wrong step: a table of scores against trajectories.

The table has a line for each step, or a line for each trajectory whose ``position`` names a step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from sonde.core.errors import InputError
from sonde.core.wording import plural
from sonde.data.columns import STEPS
from sonde.data.trajectory import RIGHT, first_error_of
from sonde.metrics import auroc, joint_match, localisation, step_f1
from sonde.run.scoring.evaluate import RESAMPLES, ends
from sonde.run.scoring.known import KnownItems
from sonde.run.scoring.tables import scores_of

NO_ALARM = ("f1", "joint")


def evaluate_steps(
    scored: pa.Table,
    data: Any,
    *,
    label_column: str | None = None,
    alpha: float = 0.05,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return how well each detector at each site finds the first wrong step of trajectories.

    Parameters
    ----------
    scored : pyarrow.Table
        As ``sonde.score`` returns it: a line for each step (reduction ``rows``), or a line
        for each trajectory whose ``position`` names a step.
    data : str, path or iterable
        The trajectories, with ``first_error``, ``label`` or both. Those whose first wrong step is
        not known are left out.
    label_column : str, optional
        Of the verdict, 0 right and 1 wrong; default ``label``.
    alpha : float, default=0.05
        A step raises an alarm if its p-value is at most this.
    resamples, seed
        As in ``auroc``; trajectories are resampled whole.

    Returns
    -------
    list of dict
        For each instrument and site ``n n_wrong left_out``, ``localised`` (top-1), ``auroc``,
        ``f1`` and ``joint`` with ``_low`` and ``_high``. ``f1`` and ``joint`` are None without
        p-values, ``auroc`` if a line stands for a whole trajectory. Steps after the first wrong
        step count neither in ``auroc`` nor in ``f1``: nothing is known about them.

    Raises
    ------
    InputError
        If the data are no trajectories, no trajectory is wrong, or lines do not match the steps.
    """
    items = KnownItems.of(data)
    lengths = {i: len(steps) for i, steps in items.column(STEPS).items()}
    first = {
        i: first_error_of(row.get(label_column or "label"), row.get("first_error"), lengths[i])
        for i, row in items.items.items()
        if i in lengths
    }
    rows = []
    for (instrument, site), part, numbers in items.parts(scored):
        steps = _Steps.of(part, numbers, lengths, first, alpha)
        if not steps.first.any():
            raise InputError(
                "evaluate: expected at least one trajectory whose first wrong step is known, "
                "got none. Give the step in a column first_error."
            )
        kept = len({i for i in numbers if first[i] >= RIGHT})
        row = {"instrument": instrument, "site": site, "n": kept}
        row |= {"n_wrong": int(steps.first.sum()), "left_out": len(set(numbers)) - kept}
        rows.append(row | steps.figures({"resamples": resamples, "seed": seed}))
    return rows


@dataclass(frozen=True)
class _Steps:
    """Steps of the trajectories whose first wrong step is known.

    ``counted`` marks the steps up to the first wrong step, or all steps of a right trajectory.
    ``named`` is true if each trajectory has a single line, which names a step; its other steps
    have no score.
    """

    named: bool
    score: np.ndarray
    alarm: np.ndarray | None
    first: np.ndarray
    counted: np.ndarray
    trajectory: np.ndarray

    @classmethod
    def of(
        cls,
        part: pa.Table,
        numbers: list[int],
        lengths: Mapping[int, int],
        first: Mapping[int, int],
        alpha: float,
    ) -> "_Steps":
        """Return the steps of a detector's lines."""
        place, item, score = part["position"].to_numpy(), np.array(numbers), scores_of(part)
        p = part["p"] if "p" in part.column_names and not part["p"].null_count else None
        alarm = None if p is None else p.to_numpy() <= alpha
        size = np.array([lengths[i] for i in numbers])
        named = len(set(numbers)) == len(numbers) and bool((size > 1).any())
        if named:
            item, score, alarm, place = _spread(item, score, alarm, place, size)
        _require_steps(item, place, lengths)
        wrong = np.array([first[i] for i in item.tolist()])
        kept = np.lexsort((place, item))
        kept = kept[wrong[kept] >= RIGHT]
        wrong, place = wrong[kept], place[kept]
        return cls(
            named, score[kept], None if alarm is None else alarm[kept], place == wrong,
            (wrong == RIGHT) | (place <= wrong), item[kept],
        )  # fmt: skip

    def figures(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return how well scores and alarms find the first wrong step of a trajectory."""
        counted, whose = self.counted, self.trajectory
        row = ends("localised", localisation(self.score, self.first, whose, **options))
        row |= dict.fromkeys(f"{name}{end}" for name in ("auroc", *NO_ALARM)
                             for end in ("", "_low", "_high"))  # fmt: skip
        if not self.named and len(set(self.first[counted].tolist())) == 2:
            truth = self.first[counted]
            row |= ends("auroc", auroc(self.score[counted], truth, whose[counted], **options))
        if self.alarm is not None:
            flagged = self.alarm[counted]
            row |= ends("f1", step_f1(flagged, self.first[counted], whose[counted], **options))
            row |= ends("joint", joint_match(self.alarm, self.first, whose, **options))
        return row


def _spread(
    item: np.ndarray,
    score: np.ndarray,
    alarm: np.ndarray | None,
    place: np.ndarray,
    size: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    """Expand lines of trajectories to steps: the named step has the score, others ``-inf``."""
    whose = np.repeat(np.arange(len(item)), size)
    steps = np.concatenate([np.arange(n) for n in size])
    here = steps == place[whose]
    spread = np.where(here, score[whose], -np.inf)
    return item[whose], spread, None if alarm is None else here & alarm[whose], steps


def _require_steps(item: np.ndarray, place: np.ndarray, lengths: Mapping[int, int]) -> None:
    """Raise unless there is exactly one line for each step."""
    order = np.lexsort((place, item))
    items, counts = np.unique(item, return_counts=True)
    inside = np.arange(len(item)) - np.repeat(counts.cumsum() - counts, counts)
    fits = counts == [lengths[i] for i in items.tolist()]
    wrong = [*items[~fits], *item[order][place[order] != inside]]
    if wrong:
        i = int(wrong[0])
        raise InputError(
            f"evaluate: expected a line for each of the {plural(lengths[i], 'step')} of item "
            f"{i}, got {plural(int((item == i).sum()), 'line')}. Read whole trajectories with "
            "the reducer steps, and score with --reduction rows."
        )
