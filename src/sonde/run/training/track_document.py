"""Measures over the steps of a training as JSON, ``sonde-track/1``: what pages read."""

import math
from typing import Any, Final

import torch

from sonde.core.errors import InputError
from sonde.core.finite import finite_json
from sonde.core.result import Result
from sonde.run.training.track import Track

SCHEMA: Final = "sonde-track/1"


def track_document(track: Track) -> dict[str, Any]:
    """Return the curves of every measure whose value is one number, and which were left out.

    With them go the pictures that results draw of a whole training (``Result.over_training``).

    Raises
    ------
    InputError
        If nothing was recorded.
    """
    found = [(step, *name, result) for step, fitted in track for name, result in fitted]
    if not found:
        raise InputError(
            f"track: {track.directory} holds no recorded step. Record into it with "
            "sonde.TrackCallback, or give checkpoints and DATA."
        )
    steps = sorted({step for step, *_ in found})
    curves: dict[tuple[str, str], dict[int, Result]] = {}
    kinds: dict[type[Result], list[tuple[int, str, Result]]] = {}
    for step, method, site, result in found:
        curves.setdefault((method, site), {})[step] = result
        kinds.setdefault(type(result), []).append((step, site, result))
    vectors = {name for name, at in curves.items() if any(map(_is_vector, at.values()))}
    charts = [kind.over_training(own) for kind, own in kinds.items()]
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
                "flags": sorted({flag for result in at.values() for flag in result.flags}),
            }
            for (method, site), at in curves.items()
            if (method, site) not in vectors
        ],
        "charts": [chart for chart in charts if chart is not None],
        "left_out": sorted({method for method, _ in vectors}),
    }
    return finite_json(document)


def _is_vector(result: Result) -> bool:
    return torch.as_tensor(result.value).numel() != 1


def _known(at: dict[int, Result], step: int, name: str) -> float | None:
    value = getattr(at[step], name) if step in at else None
    return None if value is None or not math.isfinite(value) else float(value)
