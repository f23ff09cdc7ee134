"""Fuse all detectors and sites of a table of scores into one detector with valid p-values.

For one table of scores of a bundle. For plain arrays of scores see ``sonde.alarms``.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Final, Literal, get_args

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.alarms import FusedScore, bonferroni, fuse, simes, twice_mean
from sonde.alarms.fusion import Rule
from sonde.core.errors import InputError, StateError
from sonde.engine.requests import reads_of
from sonde.run.fitting.fitted import Fitted
from sonde.run.instruments.entries import Key
from sonde.run.scoring.batches import SCHEMA
from sonde.run.scoring.tables import keys_of, part_of, scores_of
from sonde.stats import Calibrated, HeldScoresState, Kept

AnyRule = Literal["sum", "max", "learned", "bonferroni", "simes", "twice_mean"]
COMBINED: Final[dict[str, Callable[[Any], Tensor]]] = {
    "bonferroni": bonferroni,
    "simes": simes,
    "twice_mean": twice_mean,
}


def with_fused(
    scored: pa.Table,
    fitted: Fitted,
    rule: AnyRule = "sum",
    *,
    unusual: pa.Table | None = None,
    seed: int = 0,
) -> pa.Table:
    """Return a table of scores with one fused line per row, over all detectors and sites.

    Parameters
    ----------
    scored : pyarrow.Table
        As ``sonde.score`` returns it for ``fitted``, with p-values.
    fitted : Fitted
        The calibrated bundle.
    rule : str, default="sum"
        ``sum``, ``max``, ``learned``: as in ``sonde.alarms.fuse``, from the scores that ``sonde
        calibrate`` keeps of each row; the rate holds whatever the dependence. ``bonferroni`` and
        ``twice_mean`` combine the p-values of each row, valid under any dependence; ``simes`` under
        positive dependence. Their score is ``-log p``.
    unusual : pyarrow.Table, optional
        Scores of known unusual rows by the same bundle, for ``learned`` alone.
    seed : int, default=0
        Seed of the halves that ``sum``, ``max`` and ``learned`` split the kept scores into.

    Returns
    -------
    pyarrow.Table
        The lines of ``scored``, then those of the instrument ``fuse(rule)`` at all sites, which
        name the row and position of the detector with the smallest p-value.

    Raises
    ------
    InputError
        If there is nothing to fuse, lines lack a p-value, or detectors name different rows.
    StateError
        If the bundle does not keep what the rule needs.
    """
    keys = keys_of(scored)
    if rule not in (*get_args(Rule), *COMBINED):
        rules = ", ".join((*get_args(Rule), *COMBINED))
        raise InputError(f"fuse: expected a rule of {rules}, got {rule!r}.")
    if (rule == "learned") != (unusual is not None):
        raise InputError(
            "fuse: expected scores of known outliers (--unusual) with the rule 'learned', and "
            "none with other rules."
        )
    if len(keys) < 2:
        raise InputError(
            f"fuse: expected scores of several detectors or sites, got {len(keys)}. Fit several "
            "sites, e.g. with --sites blocks."
        )
    parts = _aligned(scored, keys)
    p = _p_values(parts, keys)
    if rule in COMBINED:
        together = COMBINED[rule](p)
        score = -together.log()
    else:
        fused = fused_of(fitted, keys, rule, unusual, seed)
        score, together = fused.score(_scores(parts)), fused.p_value(_scores(parts))
    columns = {
        "site": [" & ".join(dict.fromkeys(site for _, site in keys))] * len(score),
        "instrument": [f"fuse({rule})"] * len(score),
        "score": score.tolist(),
        "p": together.tolist(),
    }
    lines = _lines(parts, p.argmin(1))
    for name, values in columns.items():
        i = lines.schema.get_field_index(name)
        lines = lines.set_column(
            i, scored.schema.field(i), pa.array(values, scored.schema.types[i])
        )
    return pa.concat_tables([scored, lines])


def fused_of(
    fitted: Fitted, keys: list[Key], rule: Any, unusual: pa.Table | None = None, seed: int = 0
) -> FusedScore:
    """Return the fused score, calibrated on the held-out rows of a bundle."""
    draw, held, kept = held_rows(fitted, keys)
    other = None if unusual is None else _scores(_aligned(unusual, keys))
    return fuse(
        held, draw.numpy(), rule=rule, out_of_distribution=other, guarantee=kept.guarantee,
        delta=kept.delta, seed=seed,
    )  # fmt: skip


def held_rows(
    fitted: Fitted, keys: list[Key]
) -> tuple[Int[Tensor, "row"], Float[Tensor, "row key"], Kept]:
    """Return the sampling keys and scores of the rows that calibrated each of several detectors.

    Raises
    ------
    StateError
        If the bundle was not calibrated by ``sonde calibrate`` for all rows at once.
    """
    tasks = dict(zip(fitted.names, fitted.tasks, strict=True))
    columns: list[dict[int, float]] = []
    kept = None
    for key in keys:
        instrument = tasks[key].instrument if key in tasks else None
        kept = instrument.kept if isinstance(instrument, Calibrated) else None
        if kept is None or kept.by is not None:
            how = "" if kept is None else " without --by"
            raise StateError(
                f"fuse: expected calibration scores of {key[0]} at {key[1]} that are pooled "
                f"over all classes. Calibrate with `sonde calibrate`{how}, or fuse p-values "
                "by bonferroni, twice_mean or simes."
            )
        ((request,),) = reads_of(tasks[key], fitted.split)["held_scores"]
        state = fitted.states[request.id]
        assert isinstance(state, HeldScoresState)  # what a calibrated task keeps
        draws = torch.cat([c.draw for c in state.classes]).tolist()
        columns.append(
            dict(zip(draws, torch.cat([c.scores for c in state.classes]).tolist(), strict=True))
        )
    assert kept is not None  # there are keys, and each has it
    shared = sorted(set(columns[0]).intersection(*columns[1:]))
    rows = [[column[draw] for column in columns] for draw in shared]
    return torch.tensor(shared), torch.tensor(rows, dtype=torch.float64), kept


def _aligned(scored: pa.Table, keys: list[Key]) -> list[pa.Table]:
    """Return the lines of each detector and site, all in the same order of rows.

    A row is named by its id and by how many lines of that id come before it.
    """
    parts = [part_of(scored, key) for key in keys]
    order = _names(parts[0])
    aligned = [parts[0]]
    for key, part in zip(keys[1:], parts[1:], strict=True):
        names = _names(part)
        if names.keys() != order.keys():
            raise InputError(
                f"fuse: expected lines of the same rows from every detector, got {len(order):,} "
                f"lines of {keys[0][0]} at {keys[0][1]} and {len(names):,} of {key[0]} at "
                f"{key[1]}. Score all detectors on the same kind of rows."
            )
        aligned.append(part.take([names[name] for name in order]))
    return aligned


def _names(part: pa.Table) -> dict[tuple[Any, int], int]:
    seen: Counter[Any] = Counter()
    numbers: dict[tuple[Any, int], int] = {}
    for i, name in enumerate(part["id"].to_pylist()):
        numbers[name, seen[name]] = i
        seen[name] += 1
    return numbers


def _scores(parts: list[pa.Table]) -> Float[Tensor, "row key"]:
    return torch.tensor(np.column_stack([scores_of(part) for part in parts]))


def _p_values(parts: list[pa.Table], keys: list[Key]) -> Float[Tensor, "row key"]:
    for (instrument, site), part in zip(keys, parts, strict=True):
        if "p" not in part.column_names or part["p"].null_count:
            raise InputError(
                f"fuse: expected a p-value in every line of {instrument} at {site}. Calibrate "
                "the detectors with `sonde calibrate`, and score with the reduction that you "
                "calibrated with."
            )
    return torch.tensor(np.column_stack([part["p"].to_numpy() for part in parts]))


def _lines(parts: list[pa.Table], most: Int[Tensor, "row"]) -> pa.Table:
    """Return each row's line of its selected detector, without the detector's explanation."""
    n = parts[0].num_rows
    lines = pa.concat_tables(parts).take(most.numpy() * n + np.arange(n))
    for i, field in enumerate(lines.schema):
        if field.name not in SCHEMA.names:
            lines = lines.set_column(i, field, pa.nulls(n, field.type))
    return lines
