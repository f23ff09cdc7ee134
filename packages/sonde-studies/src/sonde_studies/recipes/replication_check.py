"""Copies: samples that lie oddly near to a training row, judged by rows that were held out."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest  # pyright: ignore[reportMissingTypeStubs]

from sonde import InputError, Model, gather, read
from sonde.core import ChartAxis, histogram
from sonde.report import Answer

QUESTION = "Did the generator copy its training rows?"
LEAST, BINS, SHOWN = 20, 24, 10


def replication_check(
    model: Model,
    samples: Any,
    training: Any,
    held: Any,
    *,
    site: str = "auto",
    alpha: float = 0.01,
    limit: int | None = None,
    progress: bool = True,
) -> Answer:
    """Find samples of a generator that copy rows of its training data.

    For each sample: the distance to the nearest training row over that to the nearest held-out row,
    between the states of a model. Held-out rows, treated as samples, say how small this ratio gets
    without copying.

    Example: sonde recipe replication-check MODEL SAMPLES TRAINING HELD -o copies.html

    Parameters
    ----------
    model : Model
        Whose states are compared: any model that reads such inputs, not the generator.
    samples : str, path or iterable
        What the generator made.
    training : str, path or iterable
        What it was trained on.
    held : str, path or iterable
        Inputs of the same kind that it was not trained on; the more, the smaller a ratio is seen.
    site : str, default="auto"
        Where the states are read; "auto" is after the last block.
    alpha : float, default=0.01
        Share of fresh inputs that may be called copies.
    limit : int, optional
        Read only the first items of each part.
    """
    parts = [
        gather(read(model, part, sites=site, limit=limit, logits=False), progress)
        for part in (samples, training, held)
    ]
    key = [*parts[0].rows][-1]
    made, seen, fresh = (part.rows[key].double() for part in parts)
    if min(len(made), len(seen), len(fresh)) < LEAST or not 0 < alpha < 0.5:
        raise InputError(
            f"replication_check: expected {LEAST} or more samples, training rows and held-out rows "
            f"and alpha in (0, 0.5), got {len(made)}, {len(seen)}, {len(fresh)} and {alpha}."
        )
    near, which = _nearest(made, seen)
    ratio = near / _nearest(made, fresh)[0].clamp(min=1e-12)
    usual = _nearest(fresh, seen)[0] / _others(fresh).clamp(min=1e-12)
    bar = _bar(usual, alpha)
    copied = ratio <= bar
    n = int(copied.sum())
    p = float(binomtest(n, len(ratio), alpha, alternative="greater").pvalue)
    found = bool(p < 0.01)
    order = [int(i) for i in torch.argsort(ratio)[:SHOWN]]
    said = "more than" if found else "no more than"
    return Answer(
        question=QUESTION,
        verdict="copies" if found else "no copies found",
        level="error" if found else "clear",
        sentence=f"{n} of {len(ratio)} samples ({n / len(ratio):.1%}) lie nearer to a training row "
        f"than {1 - alpha:.0%} of held-out rows do: {said} the {alpha:.0%} of fresh inputs "
        f"({'p < 0.001' if p < 0.001 else f'p = {p:.2g}'}).",
        value=n / len(ratio),
        null=alpha,
        n=len(ratio),
        range=(0.0, 1.0),
        direction="higher",
        rows=tuple(
            {
                "sample": int(parts[0].item[i]),
                "training row": int(parts[1].item[which[i]]),
                "ratio": float(ratio[i]),
                "distance": float(near[i]),
                "copy": "yes" if copied[i] else "no",
            }
            for i in order
        ),
        drawn=_drawn(ratio, usual, bar),
        facts={
            "site": key,
            "ratio below which a sample is a copy": f"{bar:.4g}",
            "training rows that were copied": str(len(which[copied].unique())),
        },
        advice=(
            "Look at the pairs of the table before you act. A copy that the model's states do not "
            "see as near, such as a detail of a picture, is not found.",
        ),
    )


def _bar(usual: Any, alpha: float) -> float:
    """Return a ratio that at most a share of fresh rows reach, by the conformal rank."""
    rank = int(np.floor(alpha * (len(usual) + 1)))
    return float(usual.sort().values[rank - 1]) if rank else float(usual.min()) / 2


def _nearest(x: Any, rows: Any) -> tuple[Any, Any]:
    """Return the distance to the nearest row, and which row that is."""
    found = torch.cdist(x, rows).min(1)
    return found.values, found.indices


def _others(x: Any) -> Any:
    """Return the distance of each row to the nearest other row."""
    return torch.cdist(x, x).fill_diagonal_(float("inf")).min(1).values


def _drawn(ratio: Any, usual: Any, bar: float) -> dict[str, Any]:
    edges = np.linspace(0, 1.02 * float(torch.cat([ratio, usual]).quantile(0.99)), BINS + 1)
    rows = [
        {
            "low": float(a),
            "high": float(b),
            "share": float(((v >= a) & (v < b)).double().mean()),
            "rows": name,
        }
        for name, v in (("samples", ratio), ("held-out rows", usual))
        for a, b in pairwise(edges)
    ]
    x = ChartAxis("low", title="distance to the nearest training row over that to a held-out row")
    title = "Samples left of the line are copies; held-out rows show what is usual"
    return histogram(title, rows, x, "high", ChartAxis("share", share=True), by="rows", limit=bar)
