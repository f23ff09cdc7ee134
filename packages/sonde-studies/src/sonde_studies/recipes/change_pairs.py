"""Pairs before and after: separate real changes from normal variation by their states."""

import math
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingTypeStubs]

from sonde import InputError, Model
from sonde.core import marks
from sonde.metrics import auroc
from sonde.report import Answer
from sonde_studies.parts.figures import AUROC, auroc_rows, names, told
from sonde_studies.parts.heads import linear_head
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.owners import groups_told, owners_of, shuffled_labels
from sonde_studies.parts.rows import apart, check_two, rows_with
from sonde_studies.parts.states import column_states

QUESTION = "Is it a real change, or what always differs?"
LEAST, TEST, SHUFFLES, SPREADS = 60, 0.4, 20, 2.4
"""``SPREADS``: standard errors of the best of three arms, 5 % in all."""
PLAIN, WEIGHTED = "plain difference", "weighted difference"
JOINED, SHUFFLED = "both states", "weights of shuffled labels"


@copies_once()
def change_pairs(
    model: Model,
    data: Any,
    *,
    before_column: str = "before",
    after_column: str = "after",
    changed_column: str = "changed",
    site: str = "auto",
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Separate changed from unchanged pairs by the states of both sides.

    Arms: the length of the difference of the states; a weight for each unit of the difference,
    learned on six tenths of the pairs; a head on both states; and weights that were learned from
    shuffled labels. The other pairs judge.

    Example: sonde recipe change-pairs MODEL PAIRS -o changes.html

    Parameters
    ----------
    model : Model
        An encoder of one side, of pictures, texts or tables.
    data : str, path or iterable
        Rows with both sides, and whether something changed that matters.
    before_column : str, default="before"
        Column of the one side.
    after_column : str, default="after"
        Column of the other side.
    changed_column : str, default="changed"
        Column that says 1 where something changed, else 0.
    site : str, default="auto"
        Where the states are read; "auto" is after the last block.
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". Rows of one group,
        and near copies, are never on both sides of a split.
    limit : int, optional
        Read only the first pairs.
    seed : int, default=0
        Draws the pairs that judge.
    """
    check_two("change_pairs", "columns", [before_column, after_column])
    columns = [before_column, after_column, changed_column]
    rows = rows_with("change_pairs", data, columns, LEAST, limit)
    truth = _truth([str(row[changed_column]) for row in rows], changed_column)
    x, y = column_states([model, model], rows, columns[:2], site, progress)
    owner = owners_of(data, group_column, limit)[: len(rows)]
    kept, held = apart(truth, TEST, seed, owner=owner)
    gap = ((x - y) ** 2) / ((x - y)[kept] ** 2).mean(0).clip(1e-12)
    both = np.concatenate([x + y, np.abs(x - y)], 1)
    score = {
        PLAIN: ((x - y) ** 2).sum(1)[held],
        WEIGHTED: _weighted(gap, truth[kept], kept, held),
        JOINED: linear_head().fit(both[kept], truth[kept]).decision_function(both[held]),
    }
    chance = [
        _weighted(gap, shuffled_labels(truth[kept], owner[kept], seed + i), kept, held)
        for i in range(SHUFFLES)
    ]
    by_chance = [float(auroc(s, truth[held], resamples=20).value) for s in chance]
    found = {arm: auroc(s, truth[held], seed=seed) for arm, s in score.items()}
    best = max(found, key=lambda arm: float(found[arm].value))
    is_told = float(found[best].value) - SPREADS * (found[best].se or 0.0) > 0.5
    apart_by = SPREADS * math.hypot(found[best].se or 0.0, found[PLAIN].se or 0.0)
    gains = float(found[best].value) - float(found[PLAIN].value) > apart_by
    table = [{"arm": a, "AUROC": float(v.value), "error": v.se} for a, v in found.items()]
    title, points = "How well changed pairs are told", auroc_rows(found, "arm")
    return Answer(
        question=QUESTION,
        verdict=(best if gains else PLAIN) if is_told else "not told",
        level="clear" if is_told else "warning",
        sentence=f"The length of the difference tells changed pairs with an AUROC of "
        f"{float(found[PLAIN].value):.3f}, weighted units with {float(found[WEIGHTED].value):.3f}, "
        f"a head on both states with {float(found[JOINED].value):.3f}, on {len(held)} other pairs.",
        **told(found[WEIGHTED]),
        rows=(*table, {"arm": SHUFFLED, "AUROC": float(np.mean(by_chance)), "error": None}),
        drawn=marks(title, points, AUROC, names("arm"), low="low", high="high", size=90),
        facts={"changed": f"{truth.mean():.3f}", "pairs that learn": str(len(kept))}
        | groups_told(owner, "pairs"),
        advice=(
            "What always differs, such as light or a shift of a pixel, must stand in the pairs "
            "without a change, or no weighting can learn to leave it out.",
        ),
    )


def _truth(said: list[str], column: str) -> Any:
    """Return 1 for changed pairs, and 0 for the others."""
    words = {"0": 0, "1": 1, "false": 0, "true": 1, "0.0": 0, "1.0": 1}
    truth = np.array([words.get(word.lower(), -1) for word in said])
    if min((truth == 0).sum(), (truth == 1).sum()) < 10 or (truth < 0).any():
        often = [f"{word} {said.count(word)} times" for word in sorted(set(said))[:5]]
        raise InputError(
            f"change_pairs: expected 0 and 1 in {column!r}, each ten times or more, got "
            f"{', '.join(often)}. Name the column: changed_column."
        )
    return truth


def _weighted(gap: Any, truth: Any, kept: Any, held: Any) -> Any:
    """Return scores of squared differences, with a weight for each unit."""
    head = LogisticRegression(C=0.1, max_iter=1000).fit(np.log1p(gap[kept]), truth)
    return head.decision_function(np.log1p(gap[held]))
