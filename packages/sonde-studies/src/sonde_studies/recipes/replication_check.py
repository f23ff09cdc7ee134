"""Detection of samples that copy training rows, with held-out rows as controls."""

from typing import Any

import numpy as np

from sonde import InputError, Model, gather, read
from sonde.data import rows_of
from sonde.report import Answer
from sonde_studies.parts.copies import (
    copies_picture,
    copy_bar,
    leak_advice,
    nearest_pairs,
    ratios_by_states,
    ratios_by_words,
    verdict_on,
)
from sonde_studies.parts.once import copies_once

QUESTION = "Did the generator copy its training rows?"
LEAST = 20
TEXTS = ("causal", "classifier", "encoder", "seq2seq")
LEVELS: dict[str, Any] = {"copies": "error", "no copies found": "clear"}
SHOWN = {"states": "ratios of distances", "words": "fractions of new words"}


@copies_once("samples", one_of_group=("samples", "held"))
def replication_check(
    model: Model,
    samples: Any,
    training: Any,
    held: Any,
    *,
    site: str = "auto",
    alpha: float = 0.01,
    text_column: str = "text",
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Find samples of a generator that copy rows of its training data.

    For each sample: the distance to the nearest training row over that to the nearest of some
    held-out rows, between the states of a model. The other held-out rows, treated as samples, say
    how small this ratio gets without copying; an exact test compares the two. Texts are compared
    by their runs of three words as well. A long text is judged by its passage of the least ratio.

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
        Fraction of fresh inputs that may be marked as copies in the table.
    text_column : str, default="text"
        Column of the text, if the model reads texts.
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". One row of each
        group counts.
    limit : int, optional
        Read only the first items of each part.
    seed : int, default=0
        Draws which held-out rows are treated as samples.
    """
    given: dict[str, Any] = {"sites": site, "limit": limit, "logits": False}
    if model.task in TEXTS:
        given["text_column"] = text_column
    parts = [gather(read(model, part, **given), progress) for part in (samples, training, held)]
    n, m, k = (len(np.unique(part.item)) for part in parts)
    if min(n, m, k) < LEAST or not 0 < alpha < 0.5:
        raise InputError(
            f"replication_check: expected {LEAST} or more samples, training rows and held-out rows "
            f"and alpha in (0, 0.5), got {n}, {m}, {k} and {alpha}."
        )
    near = ratios_by_states(parts[0], parts[1], parts[2], seed)
    ways = {"states": near}
    if model.task in TEXTS:
        texts = [
            [str(r[text_column]) for r in rows_of(x, limit)] for x in (samples, training, held)
        ]
        ways["words"] = ratios_by_words(texts, near)
    way, verdict, p = verdict_on(ways, near, alpha, seed)
    found, leaks = ways[way], int(near.leaks.sum())
    bar = copy_bar(found.fresh[~found.leaks], alpha)
    copied = found.made <= bar
    fraction = float(copied.mean())
    lead = f"{leaks} of {len(near.fresh)} held-out rows equal a training row. " if leaks else ""
    what = "are smaller than those" if verdict == "near to its rows" else "lie below the lowest"
    return Answer(
        question=QUESTION,
        verdict=verdict,
        level=LEVELS.get(verdict, "warning"),
        sentence=f"{lead}{int(copied.sum())} of {n} samples ({fraction:.1%}) are marked as copies, "
        f"where {alpha:.0%} of fresh inputs may be. That {SHOWN[way]} of samples {what} of "
        f"{len(near.fresh)} held-out rows has {'p < 0.001' if p < 0.001 else f'p = {p:.2g}'}"
        f"{' if these rows are left out' * (verdict == 'held rows leak')}.",
        value=fraction,
        null=alpha,
        n=n,
        range=(0.0, 1.0),
        direction="higher",
        rows=nearest_pairs(way, found, near, copied, training),
        drawn=copies_picture(way, found, bar),
        facts={
            "site": [*parts[0].rows][-1],
            "compared by": way,
            "value up to which a sample is marked": f"{bar:.4g}",
            "training rows that were copied": str(len(np.unique(found.pair[copied]))),
        },
        advice=leak_advice(leaks, verdict),
    )
