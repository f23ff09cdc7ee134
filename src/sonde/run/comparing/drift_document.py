"""A drift as JSON, ``sonde-drift/1``, for pages, terminals and programs."""

import math
from typing import Any, Final

from sonde.detect.subspace_shift import SubspaceComparison
from sonde.detect.unit_shift import UnitComparison
from sonde.files.identity import agree
from sonde.run.comparing.drift import MOST_TIMES, Drift
from sonde.run.fitting.fitted import Fitted
from sonde.run.fitting.state_sizes import state_sizes
from sonde.run.instruments.entries import Key
from sonde.stats.adjusted_p import Correction

SCHEMA: Final = "sonde-drift/1"
MOST_UNITS: Final = 20
WIDEST_VECTOR: Final = 16_384


def drift_document(
    found: Drift,
    first: Fitted,
    second: Fitted,
    *,
    names: tuple[str, str] = ("first", "second"),
    level: float = 0.05,
    correction: Correction = "holm",
) -> dict[str, Any]:
    """Return the results of a drift as JSON values.

    Parameters
    ----------
    found : Drift
    first, second : Fitted
        The bundles that were compared.
    names : (str, str)
        What they are called.
    level : float, default=0.05
        A comparison has moved if its adjusted p-value is at most this.
    correction : {"holm", "bh"}, default="holm"
        The correction for the number of comparisons.
    """
    adjusted = found.adjusted(correction)
    moved = set(found.moved(level, correction))
    sites = list(dict.fromkeys(site for _, site in (*found.found, *found.left_out)))
    tested = [c for _, c in found if not math.isnan(c.p)]
    return {
        "schema": SCHEMA,
        "level": level,
        "correction": correction,
        "moved": bool(moved) if tested else None,
        "identical": found.identical,
        "rows": found.rows,
        "same_model": _model(first) is not None and _model(first) == _model(second),
        "first": _side(first, names[0]),
        "second": _side(second, names[1]),
        "notes": _notes(found, first, second, adjusted, level),
        "sites": [_site(site, found, adjusted, moved, level) for site in sites],
        "comparisons": [_comparison(key, found, adjusted, moved) for key, _ in found],
        "left_out": [
            {"method": method, "site": site, "reason": reason}
            for (method, site), reason in found.left_out.items()
        ],
        "direction": _vector(found),
        "states": [
            {"side": side, **entry}
            for side, bundle in (("first", first), ("second", second))
            for entry in state_sizes(bundle)
        ],
    }


def _model(bundle: Fitted) -> str | None:
    return bundle.header["model"].get("model")


def _side(bundle: Fitted, name: str) -> dict[str, Any]:
    data, model = bundle.header["data"], bundle.header["model"]
    return {
        "name": name,
        "methods": list(dict.fromkeys(method for method, _ in bundle.names)),
        "n_examples": data["n_examples"],
        "n_groups": data["n_groups"] if data.get("grouped") else None,
        "data": data["fingerprint"],
        "model": model.get("model"),
        "dtype": model.get("dtype"),
    }


def _notes(
    found: Drift, first: Fitted, second: Fitted, adjusted: dict[Key, float], level: float
) -> list[str]:
    """Return the notes that a reader needs to interpret the p-values."""
    notes = []
    if found.identical:
        notes.append("Both files hold the same states, so no difference can be detected.")
    if _model(first) != _model(second):
        notes.append("The two sides come from different models; sites are matched by name.")
    if found.rows == "same" and not found.identical:
        notes.append(
            "Both sides contain the same rows. The p-values test whether the rows changed in a "
            "common direction, against the null hypothesis that each row's two states are "
            "exchangeable; the size of the change is printed beside them."
        )
    if found.rows == "some":
        notes.append(
            "Some sampled rows occur on both sides. If their states are similar on both "
            "sides, p-values are too large rather than too small."
        )
    for what in ("reading", "model"):
        one, other = first.header[what], second.header[what]
        differ = sorted(
            k for k in one if k not in ("model", "code") and not agree(k, one[k], other.get(k))
        )
        if differ:
            notes.append(f"The two sides were read with different settings: {', '.join(differ)}.")
    blind = sum("paired" in c.flags for _, c in found)
    if blind:
        notes.append(
            f"{blind} comparisons have no p-value: both sides have the same rows, but one side "
            "holds no sample of these rows. Fit covariance as well, which keeps a sample."
        )
    coarse = sum("coarse" in c.flags for _, c in found)
    if coarse:
        notes.append(
            f"In {coarse} of {len(found)} comparisons, the values of units lie within one bin "
            "of their histograms, so changes inside the bin are not detected. "
            "unit_shift(test='mean') detects them."
        )
    n_known = sum(not math.isnan(p) for p in adjusted.values())
    if n_known / (MOST_TIMES + 1) > level:
        notes.append(
            f"With {n_known} comparisons, no permutation test can pass the correction by itself; "
            "fit fewer sites, or use --correction bh."
        )
    return notes


def _site(
    site: str, found: Drift, adjusted: dict[Key, float], moved: set[Key], level: float
) -> dict[str, Any]:
    keys_here = [key for key, _ in found if key[1] == site]
    comparable = [key for key in keys_here if not math.isnan(adjusted[key])]
    best = min(comparable, key=lambda key: adjusted[key], default=None)
    unit_key = next((k for k in keys_here if isinstance(found[k], UnitComparison)), None)
    units = None if unit_key is None else found[unit_key]
    named = _units(units, found_moved=unit_key in moved, level=level)
    turned = next(
        (c for key, c in found if key[1] == site and isinstance(c, SubspaceComparison)), None
    )
    return {
        "site": site,
        "moved": any(key in moved for key in keys_here) if comparable else None,
        "by": [method for method, place in keys_here if (method, place) in moved],
        "adjusted": None if best is None else adjusted[best],
        "clearest": None if best is None else best[0],
        "direction": _direction(found, site),
        **named,
        "angles": None if turned is None else [_finite(a) for a in turned.angles.tolist()],
        "axis": None if turned is None else _largest(turned.axis),
    }


def _direction(found: Drift, site: str) -> dict[str, Any] | None:
    where = found.directions.get(site)
    if where is None:
        return None
    return {
        "length": where.length,
        "deviations": where.deviations,
        "beyond_noise": where.beyond_noise,
        "units": [list(pair) for pair in where.units()],
    }


def _vector(found: Drift) -> dict[str, Any] | None:
    """Return the largest change's direction in standard deviations, or None if all are noise."""
    beyond = {s: d for s, d in found.directions.items() if d.beyond_noise and len(d.vector)}
    if not beyond:
        return None
    site = max(
        beyond, key=lambda s: (beyond[s].deviations or 0.0) * (beyond[s].beyond_noise or 0.0)
    )
    vector = beyond[site].vector
    whole = len(vector) <= WIDEST_VECTOR
    return {"site": site, "vector": vector.tolist() if whole else None}


def _largest(axis: Any, count: int = 5) -> list[list[float]]:
    top = axis.abs().argsort(descending=True, stable=True)[:count].tolist()
    return [[unit, float(axis[unit])] for unit in top if float(axis[unit])]


def _units(units: Any, found_moved: bool, level: float) -> dict[str, Any]:
    """Return the units of smallest p-value, ties by the largest effect, and the counts of units.

    A unit counts as moved only if the comparison of units has moved, so that the guarantee of the
    correction holds for units too.
    """
    if not isinstance(units, UnitComparison):
        return {"units": [], "n_units": None, "n_units_moved": None}
    low = units.adjusted <= level if found_moved else units.adjusted < 0
    effect = units.effect.nan_to_num(nan=0.0, posinf=math.inf)
    keys = list(zip(units.adjusted.tolist(), (-effect).tolist(), strict=True))
    order = sorted(range(len(keys)), key=lambda i: (math.isnan(keys[i][0]), keys[i]))
    named = [
        {
            "unit": i,
            "effect": _finite(float(units.effect[i])),
            "moved_by": _finite(float(units.moved_by[i])),
            "p": _finite(float(units.unit_p[i])),
            "adjusted": _finite(float(units.adjusted[i])),
            "moved": bool(low[i]),
        }
        for i in order[:MOST_UNITS]
    ]
    return {"units": named, "n_units": len(keys), "n_units_moved": int(low.sum())}


def _comparison(
    key: Key, found: Drift, adjusted: dict[Key, float], moved: set[Key]
) -> dict[str, Any]:
    comparison = found[key]
    null = comparison.null
    return {
        "method": key[0],
        "site": key[1],
        "value": _finite(float(comparison)),
        "null": None if null is None else _finite(float(null)),
        "statistic": _finite(comparison.statistic),
        "p": _finite(comparison.p),
        "adjusted": _finite(adjusted[key]),
        "moved": key in moved if not math.isnan(comparison.p) else None,
        "n_first": comparison.sides[0],
        "n_second": comparison.sides[1],
        "basis": list(found.basis.get(key, ())),
        "flags": list(comparison.flags),
        "conventions": {k: str(v) for k, v in comparison.conventions.items()},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
