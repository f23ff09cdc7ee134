"""Figures of a compressed model for its card."""

import math
from pathlib import Path

from sonde.compress import Fidelity
from sonde.core.inputs import Model
from sonde.core.wording import plural, significant
from sonde.run.compressing.document import weight_counts
from sonde.weights import RewritePlan


def card_figures(
    model: Model, plan: RewritePlan, fidelity: Fidelity, data: str, n_compared: int
) -> dict[str, str]:
    """Return parameters and measured differences from the original model, as text by name.

    Parameters
    ----------
    model : Model
        Original model.
    plan : RewritePlan
        Plan of the compression.
    fidelity : Fidelity
        Measured difference of the answers.
    data : str
        Name of the data. Of a path on this machine, only the last part is written.
    n_compared : int
        Number of examples that both models answered.
    """
    before, after = weight_counts(model.module, plan)
    name = Path(data).name if Path(data).is_absolute() else data
    compared = f"{plural(n_compared, 'example')} of {name}, none of which calibrated the method"
    measured = {
        "Compared on": compared,
        "KL divergence of the answers from the original's": _interval(fidelity, "kl", " nats"),
        "Cosine of both models' vectors": _interval(fidelity, "cosine", ""),
        "Other most likely answer": _fraction(fidelity.changed, fidelity.n),
        "Correct answers that became wrong": _fraction(fidelity.right_to_wrong, fidelity.n),
        "Wrong answers that became correct": _fraction(fidelity.wrong_to_right, fidelity.n),
    }
    counts = {"Parameters": f"{after:,} (original: {before:,})"}
    return counts | {key: text for key, text in measured.items() if text}


def _interval(fidelity: Fidelity, key: str, unit: str) -> str:
    """Return a mean with its 95 % interval, or an empty text if it is not defined."""
    mean, low, high = (getattr(fidelity, key + end) for end in ("", "_low", "_high"))
    if math.isnan(mean):
        return ""
    text = significant(mean, 3) + unit
    if math.isnan(low):
        return text
    return f"{text} (95 % interval {significant(low, 3)} to {significant(high, 3)})"


def _fraction(value: float, n: int) -> str:
    return "" if math.isnan(value) else f"{significant(100 * value, 3)} % of {plural(n, 'answer')}"
