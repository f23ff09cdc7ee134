"""Tables of scores of usual and of unusual rows, as figures with intervals."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute, csv, json, parquet

from sonde.core.errors import InputError
from sonde.metrics import Metric, aupr, auroc, fpr_at_tpr
from sonde.run.tables import check_suffix, json_lines
from sonde.stats.intervals import grouped_share

RESAMPLES = 1000
NEEDED = ("id", "site", "instrument", "score")


def read_table(path: str | Path) -> pa.Table:
    """Read a table that ``sonde score`` wrote; a score that is null is one of a row not finite.

    Raises
    ------
    InputError
        If the file is missing, of another kind, or lacks a column.
    """
    path = Path(path)
    check_suffix(path)
    if not path.is_file():
        raise InputError(f"evaluate: there is no file {path}.")
    source = io.BytesIO(path.read_bytes())
    try:
        if path.suffix == ".parquet":
            table = parquet.read_table(source, page_checksum_verification=True)
        elif path.suffix == ".csv":
            plain = csv.ConvertOptions(null_values=[""])  # NaN is a wrong score, not a missing one
            table = csv.read_csv(source, convert_options=plain)
        else:
            table = json.read_json(io.BytesIO(json_lines(source.getvalue())))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"evaluate: {path} is no table of scores: {error}.") from error
    return _checked(table, str(path))


def _checked(table: pa.Table, where: str) -> pa.Table:
    """Return a table of scores, its places as texts."""
    names = table.column_names
    missing = [name for name in NEEDED if name not in names]
    if missing or table.num_rows == 0:
        lacking = f" without {', '.join(missing)}" if missing else ""
        raise InputError(
            f"evaluate: expected rows with the columns {', '.join(NEEDED)} in {where}, got "
            f"{table.num_rows} rows{lacking}. Write the table with `sonde score`."
        )
    if twice := [name for name in (*NEEDED, "p") if names.count(name) > 1]:
        raise InputError(
            f"evaluate: expected each column once in {where}, got {', '.join(twice)} again. Rename "
            "or drop the copies."
        )
    _check_numbers(table, where)
    for name in ("site", "instrument"):
        if table[name].null_count:
            raise InputError(
                f"evaluate: expected a {name} in every row of {where}, got "
                f"{table[name].null_count} rows without. Write the table with `sonde score`."
            )
        table = table.set_column(names.index(name), name, table[name].cast(pa.string()))
    return table


def _check_numbers(table: pa.Table, where: str) -> None:
    """Refuse scores and p-values that are no numbers, NaN, and p-values that are none."""
    types: Any = pa.types
    for name in ("score", "p"):
        kind = table[name].type if name in table.column_names else pa.null()
        if not (types.is_floating(kind) or types.is_integer(kind) or types.is_null(kind)):
            raise InputError(
                f"evaluate: expected numbers as {name} in {where}, got {kind}, such as "
                f"{table[name][0].as_py()!r:.40}. Write the table with `sonde score`."
            )
    n_nan = sum(s is not None and math.isnan(s) for s in table["score"].to_pylist())
    if n_nan:
        raise InputError(
            f"evaluate: expected scores without NaN in {where}, got {n_nan} NaN. Score rows that "
            "are not finite as +inf."
        )
    if "p" in table.column_names:
        wrong = [p for p in table["p"].to_pylist() if p is not None and not 0 <= p <= 1]
        if wrong:
            raise InputError(
                f"evaluate: expected p-values in [0, 1] as p in {where}, got {wrong[0]}. Write the "
                "table with `sonde score`."
            )


def evaluate(
    usual: pa.Table,
    unusual: pa.Table,
    *,
    alpha: float = 0.05,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return how well each detector at each site tells two tables of scores apart.

    Parameters
    ----------
    usual, unusual : pyarrow.Table
        As ``sonde.score`` returns them. The rows of one id are resampled together.
    alpha : float, default=0.05
        False-alarm rate at which the detectors are set; figures about it need a calibration.
    resamples : int, default=1000
    seed : int, default=0

    Returns
    -------
    list of dict
        For each instrument and site ``n_usual n_unusual``, ``auroc aupr aupr_usual
        fpr_at_95tpr_unusual fpr_at_95tpr_usual`` each with ``_low`` and ``_high``, and
        ``false_alarms`` with its interval, exact where every row has an id of its own, and
        ``found``, the alarms on unusual rows.

    Raises
    ------
    InputError
        If the two tables have no instrument and site in common, or a column holds no numbers.
    """
    if not 0 < alpha < 1:
        raise InputError(f"evaluate: expected alpha in (0, 1), got {alpha}.")
    return [
        {"instrument": k[0], "site": k[1], **_figures(a, b, alpha, resamples, seed)}
        for k, a, b in pairs_of(usual, unusual)
    ]


def pairs_of(
    usual: pa.Table, unusual: pa.Table
) -> list[tuple[tuple[str, str], pa.Table, pa.Table]]:
    """Return the rows of each instrument and site that both tables have.

    Raises
    ------
    InputError
        If there is none.
    """
    usual, unusual = _checked(usual, "the usual rows"), _checked(unusual, "the unusual rows")
    known = set(keys_of(unusual))
    both = [(k, part_of(usual, k), part_of(unusual, k)) for k in keys_of(usual) if k in known]
    if not both:
        raise InputError(
            "evaluate: the two tables have no detector at one site in common. Score both with the "
            "same file."
        )
    return both


def keys_of(table: pa.Table) -> list[tuple[str, str]]:
    """Return the instruments and sites of a table, as they first come."""
    pairs = zip(table["instrument"].to_pylist(), table["site"].to_pylist(), strict=True)
    return list(dict.fromkeys(pairs))


def part_of(table: pa.Table, key: tuple[str, str]) -> pa.Table:
    """Return the rows of one instrument and site."""
    pc: Any = compute
    mine = pc.and_(pc.equal(table["instrument"], key[0]), pc.equal(table["site"], key[1]))
    return table.filter(mine)


def _figures(
    usual: pa.Table, unusual: pa.Table, alpha: float, resamples: int, seed: int
) -> dict[str, Any]:
    scores = np.concatenate([scores_of(usual), scores_of(unusual)])
    truth = np.r_[np.zeros(usual.num_rows), np.ones(unusual.num_rows)]
    group = groups_of(usual, unusual)
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    found = {
        "auroc": auroc(scores, truth, group, **options),
        "aupr": aupr(scores, truth, group, **options),
        "aupr_usual": aupr(scores, truth, group, positive="usual", **options),
        "fpr_at_95tpr_unusual": fpr_at_tpr(scores, truth, group, **options),
        "fpr_at_95tpr_usual": fpr_at_tpr(scores, truth, group, positive="usual", **options),
    }
    row: dict[str, Any] = {"n_usual": usual.num_rows, "n_unusual": unusual.num_rows}
    for name, metric in found.items():
        row |= ends(name, metric)
    return row | _alarms(usual, unusual, alpha)


def groups_of(usual: pa.Table, unusual: pa.Table) -> np.ndarray:
    """Return which rows are of one id, over both tables; an id in both means two groups."""
    names = [f"usual {i}" for i in usual["id"].to_pylist()]
    names += [f"unusual {i}" for i in unusual["id"].to_pylist()]
    return np.unique(np.array(names), return_inverse=True)[1]


def ends(name: str, metric: Metric) -> dict[str, float | None]:
    """Return a figure and the ends of its interval; None where one is not defined."""
    values = {name: float(metric.value), f"{name}_low": metric.low, f"{name}_high": metric.high}
    return {k: v if math.isfinite(v) else None for k, v in values.items()}


def _alarms(usual: pa.Table, unusual: pa.Table, alpha: float) -> dict[str, Any]:
    """Return the share of rows of either kind with ``p <= alpha``, None without calibration."""
    names = ("false_alarms", "false_alarms_low", "false_alarms_high", "found")
    if any("p" not in t.column_names or t["p"].null_count for t in (usual, unusual)):
        return dict.fromkeys(names)
    false = np.array([p <= alpha for p in usual["p"].to_pylist()])
    seen = sum(p <= alpha for p in unusual["p"].to_pylist())
    member = np.unique(np.array(usual["id"].to_pylist(), dtype=str), return_inverse=True)[1]
    low, high = grouped_share(false, member)
    values = (float(false.mean()), low, high, seen / unusual.num_rows)
    return dict(zip(names, values, strict=True))


def scores_of(table: pa.Table) -> np.ndarray:
    """Return the scores of a table; those of rows that are not finite as +inf."""
    return np.array([math.inf if s is None else float(s) for s in table["score"].to_pylist()])
