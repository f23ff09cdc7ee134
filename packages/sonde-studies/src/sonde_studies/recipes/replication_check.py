"""Copies: samples that lie oddly near to a training row, judged by rows that were held out."""

from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest  # pyright: ignore[reportMissingTypeStubs]

from sonde import InputError, Model, gather, read
from sonde.report import Answer
from sonde_studies.parts.figures import BINS, low_bar, two_histograms

QUESTION = "Did the generator copy its training rows?"
LEAST, SHOWN = 20, 10


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
    made, seen, fresh = (part.last for part in parts)
    n = len(made)
    if min(n, len(seen), len(fresh)) < LEAST or not 0 < alpha < 0.5:
        raise InputError(
            f"replication_check: expected {LEAST} or more samples, training rows and held-out rows "
            f"and alpha in (0, 0.5), got {n}, {len(seen)}, {len(fresh)} and {alpha}."
        )
    near, which = torch.cdist(made, seen).min(1)
    ratio = near / torch.cdist(made, fresh).amin(1).clamp(min=1e-12)
    others = torch.cdist(fresh, fresh).fill_diagonal_(float("inf")).amin(1)
    usual = torch.cdist(fresh, seen).amin(1) / others.clamp(min=1e-12)
    bar = low_bar(usual, alpha, none=float(usual.min()) / 2)
    copied = ratio <= bar
    share = float(copied.double().mean())
    p = float(binomtest(int(copied.sum()), n, alpha, alternative="greater").pvalue)
    said = "more than" if p < 0.01 else "no more than"
    edges = np.linspace(0, 1.02 * float(torch.cat([ratio, usual]).quantile(0.99)), BINS + 1)
    title = "Samples left of the line are copies; held-out rows show what is usual"
    axis = "distance to the nearest training row over that to a held-out row"
    drawn = two_histograms(title, {"samples": ratio, "held-out rows": usual}, edges, axis, bar)
    return Answer(
        question=QUESTION,
        verdict="copies" if p < 0.01 else "no copies found",
        level="error" if p < 0.01 else "clear",
        sentence=f"{int(copied.sum())} of {n} samples ({share:.1%}) lie nearer to a training row "
        f"than {1 - alpha:.0%} of held-out rows do: {said} the {alpha:.0%} of fresh inputs "
        f"({'p < 0.001' if p < 0.001 else f'p = {p:.2g}'}).",
        value=share,
        null=alpha,
        n=n,
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
            for i in torch.argsort(ratio)[:SHOWN].tolist()
        ),
        drawn=drawn,
        facts={
            "site": [*parts[0].rows][-1],
            "ratio below which a sample is a copy": f"{bar:.4g}",
            "training rows that were copied": str(len(which[copied].unique())),
        },
        advice=(
            "Look at the pairs of the table before you act. A copy that the model's states do not "
            "see as near, such as a detail of a picture, is not found.",
        ),
    )
