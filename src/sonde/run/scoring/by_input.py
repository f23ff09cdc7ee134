"""Reduce a table of scores to one line per input: p-value, verdict, most significant detector."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from sonde.alarms.fusion import surprise
from sonde.core.calibration import Calibration
from sonde.core.errors import CalibrationError, InputError, StateError
from sonde.core.wording import plural
from sonde.run.fitting.fitted import Fitted
from sonde.run.instruments.entries import Key
from sonde.run.scoring.batches import SCHEMA
from sonde.run.scoring.fuse import COMBINED, AnyRule, fused_of, with_fused
from sonde.run.scoring.lacking import few_text, lacking
from sonde.run.scoring.loud_parts import COLUMNS
from sonde.run.scoring.tables import beyond, keys_of, part_of, scores_of
from sonde.stats import CalibratedScorer

BY_INPUT: Final = pa.schema(
    [
        *(SCHEMA.field(name) for name in ("id", "row")),
        ("place", pa.string()),
        *(SCHEMA.field(name) for name in SCHEMA.names[2:]),
        ("alarm", pa.bool_()),
        ("loudest", pa.string()),
        ("loudest_site", pa.string()),
        ("loudest_p", pa.float64()),
    ]
)
DEFAULT_RULES: Final[tuple[AnyRule, ...]] = ("sum", "bonferroni", "twice_mean")
WEAK: Final = (
    "few calibration rows for {n} detectors and sites: with the rule twice_mean, an input "
    "raises an alarm only if most of them find it anomalous. `sonde calibrate` on more rows "
    "detects more."
)


@dataclass(frozen=True)
class ByInput:
    """Scores with one line per input.

    Parameters
    ----------
    table : pyarrow.Table
        See ``by_input``.
    notes : tuple of str
        Why p-values or verdicts are missing or weak.
    """

    table: pa.Table
    notes: tuple[str, ...]


def by_input(
    scored: pa.Table,
    fitted: Fitted,
    *,
    alpha: float = 0.05,
    rule: AnyRule | None = None,
    unusual: pa.Table | None = None,
    place: Callable[[int], str | None] | None = None,
) -> ByInput:
    """Return a table with one line per input, in the order of the data.

    Parameters
    ----------
    scored : pyarrow.Table
        As ``sonde.score`` returns it for ``fitted``.
    fitted : Fitted
        The calibrated bundle.
    alpha : float, default=0.05
        False-alarm rate of the verdict.
    rule : str, optional
        How several detectors and sites make one p-value, see ``with_fused``; by default the first
        of ``sum``, ``bonferroni`` and ``twice_mean`` that can reach ``alpha``. Each of these holds
        whatever the dependence.
    unusual : pyarrow.Table, optional
        For the rule ``learned``, see ``with_fused``.
    place : callable, optional
        Function from a row's number in the data to its place in the user's files.

    Returns
    -------
    ByInput
        A table with ``id row place position``; ``instrument site score p`` of the detector, or of
        all together (``fuse(RULE)``); ``alarm``, whether ``p <= alpha``; ``loudest loudest_site
        loudest_p``, the detector and site with the smallest own p-value (without a calibration:
        furthest above the other inputs); and the columns that explain that detector's line. ``p``
        is null if no valid p-value is known: without a calibration, and for an input of several
        scored rows. ``alarm`` is null then too, or if too few rows calibrated for any alarm.

    Raises
    ------
    InputError, StateError
        As ``with_fused``, where a rule was named.
    """
    keys = keys_of(scored)
    parts = [part_of(scored, key) for key in keys]
    members, far = _members(parts), [_far(fitted, *one) for one in zip(keys, parts, strict=True)]
    spoken, lowest, notes = parts[0], least_p(fitted, keys), []
    if len(keys) > 1:
        used = rule or default_rule(fitted, keys, alpha)
        try:
            fused = with_fused(scored, fitted, used, unusual=unusual)
            spoken, lowest = fused.slice(scored.num_rows), least_p(fitted, keys, used, unusual)
            if rule is None and used == "twice_mean":
                notes.append(WEAK.format(n=len(keys)))
        except InputError as error:
            if rule is not None:
                raise
            spoken = None
            notes.append(f"no joint p-value over all detectors and sites: {error}")
    lines = [_line(line, place) for line in _loudest(parts, members, far)]
    n_several = 0 if spoken is None else _speak(lines, spoken, members[0], alpha, lowest)
    if n_several:
        notes.append(
            f"{plural(n_several, 'input')} with several scored rows have no joint p-value. "
            "Calibrate one score for each input (--reduction max), or print every row with "
            "--each."
        )
    if lowest > alpha and any(line["p"] is not None for line in lines):
        notes.append(_too_few(fitted, keys, alpha, lowest))
    if all(line["row"] is not None for line in lines):
        lines.sort(key=lambda line: line["row"])
    explained = [field for field in scored.schema if field.name in dict(COLUMNS)]
    schema = pa.schema([*BY_INPUT, *explained])
    return ByInput(pa.Table.from_pylist(lines, schema=schema), tuple(notes))


def default_rule(fitted: Fitted, keys: list[Key], alpha: float) -> AnyRule:
    """Return the default rule that combines p-values, valid under any dependence.

    The first rule that can reach ``alpha``, else the rule that comes nearest. ``sum`` detects most,
    and needs scores that ``sonde calibrate`` kept; ``twice_mean`` detects least, and needs the
    fewest rows.
    """
    lowest: dict[AnyRule, float] = {}
    for rule in DEFAULT_RULES:
        try:
            lowest[rule] = least_p(fitted, keys, rule)
        except (StateError, CalibrationError):
            continue
        if lowest[rule] <= alpha:
            return rule
    return min(lowest, key=lambda rule: lowest[rule])


def least_p(
    fitted: Fitted,
    keys: list[Key],
    rule: AnyRule = "bonferroni",
    unusual: pa.Table | None = None,
) -> float:
    """Return the smallest p-value that ``rule`` can give; 1 if a detector is not calibrated."""
    if rule not in COMBINED:
        return float(fused_of(fitted, keys, rule, unusual).calibration.p_value([math.inf])[0])
    each = [calibration_of(fitted, key) for key in keys]
    if None in each:
        return 1.0
    return float(COMBINED[rule]([[float(one.p_value([math.inf])[0]) for one in each]])[0])


def _too_few(fitted: Fitted, keys: list[Key], alpha: float, lowest: float) -> str:
    if len(keys) == 1 and (few := lacking(fitted, keys[0], alpha)):
        return few_text(alpha, *few)
    return (
        f"no p-value can be {alpha:g} or less: with this number of calibration rows, the "
        f"smallest is {lowest:.2g}. Calibrate on more rows (sonde calibrate), or use a larger "
        "--alarm."
    )


def calibration_of(fitted: Fitted, key: Key) -> Any:
    """Return a detector's calibration over all classes, or None if it has none."""
    scorer = fitted.scorers.get(key)
    calibration = scorer.calibration if isinstance(scorer, CalibratedScorer) else None
    return getattr(calibration, "whole", calibration)


def _members(parts: Sequence[pa.Table]) -> list[np.ndarray]:
    """Return for each detector the index of each line's input.

    An input is an item of the data, known by id and row. If detectors name different rows of an
    id, as of plain arrays whose rows make one example, the input is known by its id alone.
    """
    pairs = [list(zip(p["id"].to_pylist(), p["row"].to_pylist(), strict=True)) for p in parts]
    if any(set(names) != set(pairs[0]) for names in pairs[1:]):
        pairs = [[(name, None) for name, _ in names] for names in pairs]
    number = {name: i for i, name in enumerate(dict.fromkeys(n for names in pairs for n in names))}
    return [np.array([number[name] for name in names]) for names in pairs]


def _far(fitted: Fitted, key: Key, part: pa.Table) -> np.ndarray:
    """Return how far scores lie above the calibration scores, or without these above each other."""
    scores, held = scores_of(part), held_scores(fitted, key)
    return beyond(scores) if held is None else surprise(torch.from_numpy(scores), held).numpy()


def held_scores(fitted: Fitted, key: Key) -> Float[Tensor, "n"] | None:
    """Return the sorted scores that calibrated a detector, or None if it is not calibrated."""
    calibration = calibration_of(fitted, key)
    if calibration is None:
        return None
    held = (
        [calibration.scores]
        if isinstance(calibration, Calibration)
        else [calibration.scores, calibration.tail]
    )
    return torch.cat(held).sort().values


def _loudest(
    parts: Sequence[pa.Table], members: Sequence[np.ndarray], far: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    """Return each input's line of smallest p-value; ties go to the line with the highest score."""
    p = np.concatenate([_p_of(part) for part in parts])
    first = _first(np.concatenate(members), p, np.concatenate(far))
    return pa.concat_tables(parts).take(first).to_pylist()


def _speak(
    lines: list[dict[str, Any]], spoken: pa.Table, member: np.ndarray, alpha: float, lowest: float
) -> int:
    """Give each input the score and p-value of its selected line; return how many p were dropped.

    An input of several rows gets no p-value: the smallest p-value of its rows is not valid for it.
    """
    n_several = 0
    n_rows = np.bincount(member, minlength=len(lines))
    first = _first(member, _p_of(spoken), scores_of(spoken))
    for line, spoken_row, n in zip(lines, spoken.take(first).to_pylist(), n_rows, strict=True):
        line |= {name: spoken_row[name] for name in ("position", "site", "instrument", "score")}
        line["p"] = spoken_row["p"] if n == 1 else None
        n_several += line["p"] != spoken_row["p"]
        if line["p"] is not None and lowest <= alpha:
            line["alarm"] = line["p"] <= alpha
    return n_several


def _line(line: dict[str, Any], place: Callable[[int], str | None] | None) -> dict[str, Any]:
    where = None if place is None or line["row"] is None else place(line["row"])
    loudest = {"loudest": line["instrument"], "loudest_site": line["site"], "loudest_p": line["p"]}
    empty = dict.fromkeys(("site", "instrument", "score", "p", "alarm"))
    return {**line, **empty, **loudest, "place": where}


def _first(member: np.ndarray, p: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Return each input's line of smallest p-value; ties go to the line of largest height."""
    order = np.lexsort((-height, p, member))
    return order[np.unique(member[order], return_index=True)[1]]


def _p_of(part: pa.Table) -> np.ndarray:
    return np.array([math.inf if v is None else v for v in part["p"].to_pylist()])
