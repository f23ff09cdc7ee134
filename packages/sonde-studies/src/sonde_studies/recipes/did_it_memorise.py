"""Memorised rows: test whether a model's losses reveal its training rows."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sonde import InputError, Model
from sonde.data import row_number
from sonde.edit import membership_attack
from sonde.report import Answer
from sonde_studies.parts.figures import BINS, auroc_rows, low_bar, two_histograms
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.states import graded, groups_of
from sonde_studies.parts.tokens import NAMES, text_features

QUESTION = "Did the model memorise its training rows?"
LEAST, SHOWN, ALARMS = 20, 10, 0.01
SAID = {True: "most exposed", False: "of low loss, as held-out rows are too"}


@copies_once()
def did_it_memorise(
    model: Model,
    training: Any,
    held: Any,
    *,
    reference: Model | None = None,
    label_column: str | None = None,
    text_column: str | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> Answer:
    """Run a membership inference attack that guesses the model's training rows.

    Rows of low loss are taken for training rows. With a reference model that saw neither part, the
    loss counts less the reference's, which takes away that some rows are easy for every model.
    Rows of one id, or of one group (a column ``group``), count as one in the interval.

    Example: sonde recipe did-it-memorise MODEL TRAINING HELD -o memorised.html

    Parameters
    ----------
    model : Model
        A classifier, or a causal language model.
    training : str, path or iterable
        Rows that it was trained on, with labels where it is a classifier.
    held : str, path or iterable
        Rows of the same kind that it was not trained on.
    reference : Model, optional
        A model of the same kind that saw neither part.
    label_column : str, optional
        Column of the class, where its name does not say so.
    text_column : str, optional
        Column of the text, where its name does not say so.
    limit : int, optional
        Read only the first rows of each part.
    """
    options = {"label_column": label_column, "text_column": text_column, "limit": limit}
    sides = training, held
    own, fresh = (losses_of(model, part, progress, **options) for part in sides)
    if min(len(own), len(fresh)) < LEAST:
        raise InputError(
            f"did_it_memorise: expected {LEAST} or more rows on each side, got {len(own)} of the "
            f"training and {len(fresh)} held out."
        )
    pairs = {"low loss": (own, fresh)}
    if reference is not None:
        theirs = [losses_of(reference, part, progress, **options) for part in sides]
        pairs["low loss, less the reference's"] = own - theirs[0], fresh - theirs[1]
    group = groups_of(model, sides, **options)
    told = {name: membership_attack(*pair, group) for name, pair in pairs.items()}
    best, (one, two) = [*pairs.items()][-1]
    bar, both = low_bar(two, ALARMS, none=float(two.min()) - 1e-12), torch.cat([one, two])
    tells = bool(told[best].low > 0.5)
    table = [row | {"loss": None} for row in auroc_rows(told)]
    for i in torch.argsort(one)[:SHOWN].tolist():
        what = f"training row {row_number(training, i)}, {SAID[tells]}"
        table.append({"what": what, "loss": float(one[i])})
    edges = np.linspace(float(both.min()), float(both.quantile(0.98)) + 1e-9, BINS + 1)
    title = "Training rows left of the line give themselves away by a low loss"
    parts = {"training rows": one, "held-out rows": two}
    return Answer(
        question=QUESTION,
        verdict="memorised" if tells else "not seen",
        level="error" if tells else "clear",
        sentence=("" if tells else "No row is shown to be exposed. ")
        + f"{best.capitalize()} tells training rows from held-out rows with AUROC "
        f"{told[best].value:.3f} ({told[best].low:.3f} to {told[best].high:.3f}; 0.5 is chance), "
        f"and finds {float((one <= bar).double().mean()):.1%} of them where 1% of held-out rows "
        "are taken for training rows.",
        value=told[best].value,
        null=0.5,
        n=len(both),
        range=(0.0, 1.0),
        direction="higher",
        rows=tuple(table),
        drawn=two_histograms(title, parts, edges, "loss, nats", bar),
        facts={
            "mean loss, training rows": f"{own.mean():.4g} nats",
            "mean loss, held-out rows": f"{fresh.mean():.4g} nats",
            "attack": best,
        },
        advice=(
            "An attack that fails is no proof: a stronger one, with models trained with and "
            "without each row, may find more. Both parts must be drawn alike, or the attack only "
            "tells that they differ.",
        ),
    )


def losses_of(
    model: Model, data: Any, progress: bool, label_column: str | None, **options: Any
) -> Float[Tensor, "row"]:
    """Return the loss of each row: on its label, or the mean over a text's tokens."""
    if model.task == "causal":
        return -text_features(model, data, **options)[0][:, NAMES.index("log_p")]
    options |= {"label_column": label_column}
    found, _ = graded("did_it_memorise", model, data, 1, progress, **options)
    return torch.nn.functional.cross_entropy(found.logits.double(), found.label, reduction="none")
