"""Generated samples against held-out rows: distances, shared shingles, an exact test."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import hypergeom  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from sonde.data import row_number
from sonde_studies.parts.figures import BINS, low_bar, two_histograms
from sonde_studies.parts.words import WORD

CELLS, SHUFFLES, SHINGLE, SHOWN, LEVEL = 4_000_000, 1999, 3, 10, 0.01
LIMITS = (
    "Look at the pairs of the table before you act. A copy that the model's states do not see as "
    "near, such as a detail of a picture, is not found."
)
NEAR = (
    "As a whole samples are nearer to training rows than held-out rows are, though no more than "
    "usual are copies: the generator fits its rows closely."
)
LEAKS = (
    "Held-out rows that equal training rows are leaks, or rows of this kind recur by nature. If "
    "they are leaks, take them out of the held-out rows and ask again."
)


def nearest(
    x: Float[Tensor, "row dim"], others: Float[Tensor, "other dim"]
) -> tuple[Float[Tensor, "row"], Int[Tensor, "row"]]:
    """Return the distance to the nearest other row, and its index, in blocks of rows.

    Distances are differences of the rows themselves: equal rows have distance 0.
    """
    best, which = torch.full((len(x),), float("inf")).to(x), torch.zeros(len(x), dtype=torch.long)
    size = max(1, CELLS // max(len(x), 1))
    for start in range(0, len(others), size):
        near, number = torch.cdist(x, others[start : start + size]).min(1)
        which = torch.where(near < best, number + start, which)
        best = torch.minimum(near, best)
    return (x - others[which]).norm(dim=1), which


def lowest(values: Any, item: Any) -> tuple[Any, Any, Any]:
    """Return the items, the lowest value of each item's rows, and the index of that row."""
    order = np.lexsort((values, item))
    names, first = np.unique(np.asarray(item)[order], return_index=True)
    return names, np.asarray(values)[order][first], order[first]


def is_lower(values: Any, others: Any, seed: int) -> float:
    """Return the p-value that values are lower than others from the same distribution.

    Among the lowest k of all values, for k of 1, 2, 3, 4, 6 and so on, a hypergeometric number is
    of the first sample if both were drawn alike. The statistic is the least p over k; shuffled
    samples give its law, so that trying several k costs nothing.
    """
    pooled = np.r_[values, others]
    order = np.argsort(pooled, kind="stable")
    n, total = len(values), len(pooled)
    sizes = np.unique(np.geomspace(1, total - 1, 24).astype(int))
    ends = np.unique(np.searchsorted(pooled[order], pooled[order][sizes - 1], side="right"))
    ends = ends[ends < total]
    if not len(ends):
        return 1.0
    draw, mine = np.random.default_rng(seed), np.arange(total) < n
    rows = np.stack([mine[order], *(draw.permutation(mine) for _ in range(SHUFFLES))])
    counts = rows.cumsum(1)[:, ends - 1]
    tails = [
        hypergeom.sf(np.arange(-1, n + 1), total, n, end) for end in ends
    ]  # by the number of the first sample among the lowest
    least = np.stack([tail[c] for tail, c in zip(tails, counts.T, strict=True)]).min(0)
    return float((least <= least[0] * (1 + 1e-9)).mean())


def reach_below(values: Any, others: Any, fraction: float) -> float:
    """Return the p-value of the number of values below the lowest control values.

    Values are counted below the lowest of the others, and below that of rank ``fraction`` of them;
    the number below a rank is negative hypergeometric. Bonferroni joins the two.
    """
    low = np.sort(others)
    ranks = {1, max(1, int(fraction * (len(low) + 1)))}
    found = []
    for rank in ranks:
        n_below = int((values < low[rank - 1]).sum())
        seen = n_below + rank - 1  # among so many lowest there are fewer than ``rank`` others
        found.append(hypergeom.cdf(rank - 1, len(values) + len(low), len(low), seen))
    return min(1.0, len(ranks) * float(min(found)))


def shingles(text: str, size: int = SHINGLE) -> set[tuple[str, ...]]:
    """Return the runs of `size` words in a text, in lower case; a short text is one run."""
    words = WORD.findall(text.lower())
    return {tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}


def shared(texts: Sequence[str], training: Iterable[str]) -> tuple[Any, Any]:
    """Return each text's largest fraction of shingles found in one training text, and its index.

    The shingles of ``texts`` are held in memory, training texts pass by one after another.
    """
    users: dict[tuple[str, ...], list[int]] = {}
    sizes = np.zeros(len(texts))
    for number, text in enumerate(texts):
        found = shingles(text)
        sizes[number] = len(found)
        for shingle in found:
            users.setdefault(shingle, []).append(number)
    most, which = np.zeros(len(texts)), np.zeros(len(texts), dtype=int)
    for number, text in enumerate(training):
        hits: dict[int, int] = {}
        for shingle in shingles(text):
            for user in users.get(shingle, ()):
                hits[user] = hits.get(user, 0) + 1
        for user, count in hits.items():
            if count / sizes[user] > most[user]:
                most[user], which[user] = count / sizes[user], number
    return most, which


@dataclass(frozen=True, eq=False)
class Ratios:
    """A ratio for each sample and each held-out control; lower = nearer to training rows.

    ``pair`` is the training row of each sample, ``distance`` the distance to it, ``leaks`` which
    controls equal a training row.
    """

    samples: Any
    made: Any
    pair: Any
    distance: Any
    controls: Any
    fresh: Any
    leaks: Any


@dataclass(frozen=True)
class CopyTests:
    """p-values of copies: below the lowest controls, without leaks, and of all samples."""

    below: float
    clean: float
    lower: float


def ratios_by_states(made: Any, seen: Any, held: Any, seed: int) -> Ratios:
    """Return ratios of state distances; each item counts by its smallest ratio.

    A third of the held-out items is what all ratios refer to, the others are the controls: then
    samples and controls are drawn alike if nothing was copied. Equal held-out rows are one.
    """
    _, first = np.unique(held.last.numpy(), axis=0, return_index=True)
    items = np.unique(held.item.numpy()[first])
    draw = np.random.default_rng(seed)
    controls = np.sort(draw.permutation(items)[len(items) // 3 :])
    is_control = np.isin(held.item.numpy(), controls)
    is_kept = np.isin(np.arange(len(held)), first)
    refer = held.last[torch.from_numpy(~is_control & is_kept)]

    def ratios(rows: Any, item: Any) -> tuple[Any, ...]:
        near, which = nearest(rows, seen.last)
        far = nearest(rows, refer)[0].clamp(min=1e-12)
        names, least, row = lowest((near / far).numpy(), item)
        return names, least, seen.item.numpy()[which.numpy()[row]], near.numpy()[row]

    chosen = torch.from_numpy(is_control & is_kept)
    names, own, pair, distance = ratios(made.last, made.item.numpy())
    others, fresh, _, gap = ratios(held.last[chosen], held.item.numpy()[chosen.numpy()])
    return Ratios(names, own, pair, distance, others, fresh, gap == 0)


def ratios_by_words(texts: Any, near: Ratios) -> Ratios:
    """Return the fraction of each text's word runs that no training text contains."""
    made, seen, held = texts
    own, pair = shared([made[i] for i in near.samples], seen)
    fresh, _ = shared([held[i] for i in near.controls], seen)
    return Ratios(near.samples, 1 - own, pair, 1 - own, near.controls, 1 - fresh, near.leaks)


def nearest_pairs(
    way: str, found: Ratios, near: Ratios, copied: Any, training: Any
) -> tuple[dict[str, Any], ...]:
    """Return the samples nearest to a training row, with that row's number in the given data."""
    return tuple(
        {
            "sample": int(found.samples[i]),
            "training row": row_number(training, int(found.pair[i])),
            "ratio" if way == "states" else "new words": float(found.made[i]),
            "distance": float(near.distance[i]),
            "copy": "yes" if copied[i] else "no",
        }
        for i in np.argsort(found.made, kind="stable")[:SHOWN].tolist()
    )


def copies_picture(way: str, found: Ratios, bar: float) -> dict[str, Any]:
    """Return a histogram of samples and of held-out rows."""
    parts = {"samples": found.made, "held-out rows": found.fresh}
    high = float(np.quantile(np.concatenate([*parts.values()]), 0.99))
    edges = np.linspace(0, 1.02 * max(high, 1e-9), BINS + 1)
    title = "Samples left of the line are marked; held-out rows show what is usual"
    axis = "distance to the nearest training row over that to a held-out row"
    if way == "words":
        axis = "fraction of the runs of three words that no training text has"
    return two_histograms(
        title, {name: torch.from_numpy(v) for name, v in parts.items()}, edges, axis, bar
    )


def copy_bar(usual: Any, alpha: float) -> float:
    """Return the value that at most a fraction alpha of new inputs fall below."""
    return low_bar(torch.from_numpy(usual), alpha, none=float(usual.min()) / 2)


def leak_advice(leaks: int, verdict: str) -> tuple[str, ...]:
    """Return advice on copied pairs, on leaks, and on samples that are near as a whole."""
    found = [LIMITS, *([NEAR] if verdict == "near to its rows" else [])]
    if leaks:
        hidden = "They hide copies. " if verdict == "held rows leak" else ""
        found.append(hidden + LEAKS)
    return tuple(found)


def verdict_on(ways: Any, near: Ratios, alpha: float, seed: int) -> tuple[str, str, float]:
    """Return the more sensitive method, states or words, with its result and p-value."""
    tests = {
        name: CopyTests(
            reach_below(way.made, way.fresh, alpha),
            reach_below(way.made, way.fresh[~near.leaks], alpha),
            is_lower(way.made, way.fresh, seed),
        )
        for name, way in ways.items()
    }
    way = min(ways, key=lambda name: (tests[name].clean, tests[name].lower))
    test, level = tests[way], LEVEL / len(ways)
    verdict, p = "no copies found", test.clean
    if test.below < level:
        verdict, p = "copies", test.below
    elif test.clean < level:
        verdict = "held rows leak"
    elif test.lower < level:
        verdict, p = "near to its rows", test.lower
    return way, verdict, min(1.0, len(ways) * p)
