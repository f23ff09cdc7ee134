"""Choice between two models, and limits of a guarantee from too few rows."""

from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import binomtest  # pyright: ignore[reportMissingTypeStubs]

from sonde import InputError
from sonde.metrics import Cascade

SURE, ALPHA, SHUFFLES = 0.95, 0.05, 399


def check_answers(first: Any, second: Any) -> None:
    """Refuse models with different classes, and rows whose answers are not finite."""
    n, m = (found.logits.shape[1] for found in (first, second))
    if n != m:
        raise InputError(f"route_by_score: expected two models of the same classes, got {n}, {m}.")
    if len(first) != len(second):
        raise InputError(
            "route_by_score: expected two models that answer every row, got "
            f"{len(first)} and {len(second)} answers."
        )
    for name, found in (("weak", first), ("strong", second)):
        if bad := int((~found.logits.isfinite()).any(1).sum()):
            raise InputError(
                f"route_by_score: expected finite outputs of the {name} model, got NaN or infinity "
                f"in {bad} of {len(found)} rows. Leave these inputs out, or mend the model."
            )


def order_p_value(judged: Cascade, draw: np.random.Generator) -> float:
    """Return the p-value that a score which knows nothing of errors gains as much over lots.

    The scores are dealt to other rows. If the score is unrelated to where the models err, all ways
    to deal it are equally likely: the p-value is exact at any number of rows.
    """
    gain, doubt = judged.gain(), judged.doubt
    dealt = (replace(judged, doubt=draw.permutation(doubt)).gain() for _ in range(SHUFFLES))
    return (1 + sum(other >= gain for other in dealt)) / (1 + SHUFFLES)


def who_answers(judged: Cascade, threshold: float, *, is_order: bool, is_cheap: bool) -> str:
    """Return the model that should answer, by McNemar's exact tests."""
    joined = np.where(judged.doubt >= threshold, judged.strong, judged.weak)
    if not _is_better(joined, judged.weak):
        if _is_better(judged.weak, judged.strong):
            return "the weak model alone"
        is_stronger = _is_better(judged.strong, judged.weak)
        return "the strong model alone" if is_stronger else "no gain"
    return "route" if is_order and is_cheap else "the strong model alone"


def _is_better(one: Any, other: Any) -> bool:
    """Return whether one of two models is significantly more accurate, at a level of 5 %."""
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    p = binomtest(gained, gained + lost, alternative="greater").pvalue if gained else 1.0
    return bool(p < ALPHA)


def too_few(n: int, keep: float, sent: float) -> tuple[str, ...]:
    """Return how many rows a guarantee needs, if too few chose the threshold."""
    least = int(np.ceil(np.log((1 - SURE) / 2) / np.log(max(keep, 1e-9)))) if keep < 1 else 0
    if sent < 1 or n >= least > 0:
        return ()
    if keep == 1:
        return ("No number of rows shows that all of the accuracy is kept. Give keep below 1.",)
    return (
        f"{n} rows chose the threshold; a promise to keep {keep:g} of the accuracy needs {least} "
        "or more that lose nothing. Give more data, or a lower keep.",
    )
