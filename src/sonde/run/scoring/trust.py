"""Select the detector and site to trust on one half of the groups, and judge it on the other.

The best of many candidates looks too good on the rows that it was chosen on. ``evaluate`` gives
all figures of every candidate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from scipy.stats import rankdata

from sonde.core.hashing import base_hashes
from sonde.metrics import auroc
from sonde.run.instruments.entries import Key
from sonde.run.scoring.evaluate import RESAMPLES, ends, pairs_of
from sonde.run.scoring.tables import scores_of

LEAST_GROUPS: Final = 8


@dataclass(frozen=True)
class Candidate:
    """Scores of a detector at a site.

    Parameters
    ----------
    key : (str, str)
        Instrument and site.
    scores : array (row,)
    unusual : bool array (row,)
        Rows that ought to score high.
    group : sequence of str
        The group of each row; the rows of a group stay in the same half.
    """

    key: Key
    scores: np.ndarray
    unusual: np.ndarray
    group: Sequence[str]


def trust(
    usual: pa.Table, unusual: pa.Table, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Return the detector and site that reliably separate two tables of scores, if any.

    Parameters
    ----------
    usual, unusual, resamples, seed
        As in ``evaluate``. The rows of one id stay in one half.

    Returns
    -------
    dict
        As ``trust_of`` returns it.
    """
    return trust_of(
        [
            Candidate(
                key,
                np.concatenate([scores_of(a), scores_of(b)]),
                np.r_[np.zeros(len(a), dtype=bool), np.ones(len(b), dtype=bool)],
                [
                    f"{kind} {i}"
                    for kind, t in (("usual", a), ("unusual", b))
                    for i in t["id"].to_pylist()
                ],
            )
            for key, a, b in pairs_of(usual, unusual)
        ],
        resamples=resamples,
        seed=seed,
    )


def trust_of(
    candidates: Sequence[Candidate], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Choose a candidate on one half of the groups and evaluate it on the other half.

    The candidate of highest AUROC on the first half is chosen. On these rows it would look better
    than it is. A single candidate is judged on all rows, as there is nothing to choose.

    Returns
    -------
    dict
        ``instrument site`` of the best of ``n_candidates``; ``chosen_auroc`` on the first half;
        ``auroc auroc_low auroc_high n_usual n_unusual`` on the other half, and ``trusted``: whether
        the interval of ``auroc`` lies above 0.5. If a half has fewer than 8 groups of either kind,
        ``trusted`` and the names and figures are None.
    """
    empty = dict.fromkeys(
        ("trusted", "instrument", "site", "chosen_auroc", "auroc", "auroc_low", "auroc_high",
         "n_usual", "n_unusual"),
    )  # fmt: skip
    empty |= {"n_candidates": len(candidates)}
    first, second = _halves(candidates, seed)
    if len(candidates) == 1:
        first = second = first | second
    masks = [
        [np.array([g in half for g in c.group]) for c in candidates] for half in (first, second)
    ]
    if any(
        _n_least(c, mask) < LEAST_GROUPS
        for half in masks
        for c, mask in zip(candidates, half, strict=True)
    ):
        return empty
    values = [_auroc(c, mask) for c, mask in zip(candidates, masks[0], strict=True)]
    best = int(np.argmax(values))
    chosen, other = candidates[best], masks[1][best]
    group = np.unique(np.asarray(chosen.group)[other], return_inverse=True)[1]
    truth = chosen.unusual[other]
    separation = ends(
        "auroc", auroc(chosen.scores[other], truth, group, resamples=resamples, seed=seed)
    )
    low = separation["auroc_low"]
    return {
        **empty,
        **separation,
        "instrument": chosen.key[0],
        "site": chosen.key[1],
        "chosen_auroc": values[best],
        "trusted": low is not None and low > 0.5,
        "n_usual": int((~truth).sum()),
        "n_unusual": int(truth.sum()),
    }


def _halves(candidates: Sequence[Candidate], seed: int) -> tuple[set[str], set[str]]:
    """Return two halves of the groups with about equally many groups that hold an outlying row."""
    has: dict[str, bool] = {}
    for candidate in candidates:
        for name, unusual in zip(candidate.group, candidate.unusual.tolist(), strict=True):
            has[name] = has.get(name, False) or unusual
    names = sorted(has)
    drawn = dict(zip(names, base_hashes([n.encode() for n in names], "split", seed), strict=True))
    halves: tuple[set[str], set[str]] = set(), set()
    for kind in (False, True):
        of_kind = sorted((n for n in names if has[n] is kind), key=lambda name: drawn[name])
        for i, name in enumerate(of_kind):
            halves[i % 2].add(name)
    return halves


def _n_least(candidate: Candidate, mask: np.ndarray) -> int:
    """Return the number of groups that hold rows of the rarer kind."""
    group = np.asarray(candidate.group)
    kinds = (mask & candidate.unusual, mask & ~candidate.unusual)
    return min(len(np.unique(group[kind])) for kind in kinds)


def _auroc(candidate: Candidate, mask: np.ndarray) -> float:
    unusual = candidate.unusual[mask]
    ranks, n = rankdata(candidate.scores[mask]), int(unusual.sum())
    return float((ranks[unusual].sum() - n * (n + 1) / 2) / (n * (len(unusual) - n)))
