"""Measures over the steps of a training as JSON, ``sonde-track/1``: what pages read."""

import math
from typing import Any, Final

from sonde.core.errors import InputError
from sonde.core.finite import finite_json
from sonde.run.training.track import Track

SCHEMA: Final = "sonde-track/1"


def track_document(track: Track) -> dict[str, Any]:
    """Return the curves of every measure whose value is one number, and which were left out.

    Raises
    ------
    InputError
        If nothing was recorded.
    """
    rows = track.table().to_pylist()
    if not rows:
        raise InputError(
            f"track: {track.directory} holds no recorded step. Record into it with "
            "sonde.TrackCallback, or give checkpoints and DATA."
        )
    steps = sorted({row["step"] for row in rows})
    vectors = {(row["method"], row["site"]) for row in rows if row["index"] > 0}
    curves: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in rows:
        key = row["method"], row["site"]
        if key not in vectors:
            curves.setdefault(key, {})[row["step"]] = row
    document = {
        "schema": SCHEMA,
        "folder": str(track.directory),
        "steps": steps,
        "curves": [
            {
                "method": method,
                "site": site,
                "values": [_known(at, step, "value") for step in steps],
                "errors": [_known(at, step, "se") for step in steps],
            }
            for (method, site), at in curves.items()
        ],
        "left_out": sorted({method for method, _ in vectors}),
    }
    return finite_json(document)


def _known(at: dict[int, dict[str, Any]], step: int, name: str) -> float | None:
    value = at[step][name] if step in at else None
    return None if value is None or not math.isfinite(value) else value
