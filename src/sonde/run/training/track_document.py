"""Measures over the steps of a training run as JSON, ``sonde-track/1``, for pages."""

import math
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.finite import finite_json
from sonde.core.result import Result
from sonde.run.training.across_steps import (
    MOST_STEPS,
    SiteAcrossSteps,
    across_steps,
    charts_across_steps,
    chosen,
    samples_of,
)
from sonde.run.training.track import Track
from sonde.stats import HashSampleState

SCHEMA: Final = "sonde-track/1"


def track_document(track: Track) -> dict[str, Any]:
    """Return the curves of every measure, and how the steps compare with each other.

    The curve of a value that is a vector is the median of its entries, with their 10th and 90th
    percentile. The document also holds the charts that results draw of a whole training
    (``Result.over_training``), and charts of the sampled rows if the steps hold any.

    Raises
    ------
    InputError
        If nothing was recorded.
    """
    steps = list(track.steps)
    if not steps:
        raise InputError(
            f"track: {track.directory} holds no recorded step. Record into it with "
            "sonde.TrackCallback, or give checkpoints and DATA."
        )
    compared = {steps[i] for i in chosen(steps, MOST_STEPS)}
    curves: dict[tuple[str, str], dict[int, Result]] = {}
    kinds: dict[type[Result], list[tuple[int, str, Result]]] = {}
    samples: dict[str, dict[int, HashSampleState]] = {}
    for step, fitted in track:
        for name, result in fitted:
            curves.setdefault(name, {})[step] = result
            kinds.setdefault(type(result), []).append((step, name[1], result))
        for site, held in samples_of(fitted).items() if step in compared else ():
            samples.setdefault(site, {})[step] = held
    across = across_steps(samples)
    charts = [kind.over_training(own) for kind, own in kinds.items()]
    document = {
        "schema": SCHEMA,
        "folder": str(track.directory),
        "steps": steps,
        "curves": [_curve(*name, at, steps) for name, at in curves.items()],
        "across_steps": [_across(one) for one in across],
        "charts": [chart for chart in charts if chart is not None] + charts_across_steps(across),
    }
    return finite_json(document)


def _curve(method: str, site: str, at: dict[int, Result], steps: list[int]) -> dict[str, Any]:
    """Return the curve of a measure; for vectors the median, with ``low`` and ``high``."""
    tensors = [torch.as_tensor(at[s].value).double().flatten() if s in at else None for s in steps]
    curve: dict[str, Any] = {"method": method, "site": site}
    curve["flags"] = sorted({flag for result in at.values() for flag in result.flags})
    if all(value is None or len(value) == 1 for value in tensors):
        values = [_known(at, step, "value") for step in steps]
        return curve | {"values": values, "errors": [_known(at, step, "se") for step in steps]}
    parts = [_percentiles(value) for value in tensors]
    low, median, high = ([part[i] for part in parts] for i in range(3))
    entries = max(len(value) for value in tensors if value is not None)
    no_errors = [None] * len(steps)
    return curve | {
        "values": median, "errors": no_errors, "low": low, "high": high, "entries": entries
    }  # fmt: skip


def _percentiles(value: Tensor | None) -> list[float | None]:
    """Return the 10th, 50th and 90th percentile of the finite entries."""
    finite = torch.empty(0) if value is None else value[value.isfinite()]
    return np.quantile(finite, (0.1, 0.5, 0.9)).tolist() if len(finite) else [None, None, None]


def _across(one: SiteAcrossSteps) -> dict[str, Any]:
    emergence = one.emergence
    return {
        "site": one.site,
        "steps": one.steps,
        "n": one.similarity.n,
        "flags": one.similarity.flags,
        "to_last": one.to_last.tolist(),
        "errors": one.errors.tolist(),
        "explained": None if one.explained is None else one.explained.tolist(),
        "lateness": None if emergence is None else float(emergence),
        "lateness_error": None
        if emergence is None or emergence.se is None
        else float(emergence.se),
    }


def _known(at: dict[int, Result], step: int, name: str) -> float | None:
    value = getattr(at[step], name) if step in at else None
    return None if value is None or not math.isfinite(value) else float(value)
