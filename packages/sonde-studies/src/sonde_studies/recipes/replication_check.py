"""Copies: samples that lie oddly near to a training row, judged by rows that were held out."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sonde import InputError, Model, gather, read
from sonde.data import rows_of
from sonde.report import Answer
from sonde_studies.parts.copies import is_lower, lowest, nearest, reach_below, shared
from sonde_studies.parts.figures import BINS, low_bar, two_histograms

QUESTION = "Did the generator copy its training rows?"
LEAST, SHOWN, LEVEL = 20, 10, 0.01
TEXTS = ("causal", "classifier", "encoder", "seq2seq")
LEVELS: dict[str, Any] = {"copies": "error", "no copies found": "clear"}
LEVELS |= dict.fromkeys(("held rows leak", "near to its rows"), "warning")
NEAR = (
    "As a whole samples are nearer to training rows than held-out rows are, though no more than "
    "usual are copies: the generator fits its rows closely."
)
LIMITS = (
    "Look at the pairs of the table before you act. A copy that the model's states do not see as "
    "near, such as a detail of a picture, is not found."
)


def replication_check(
    model: Model,
    samples: Any,
    training: Any,
    held: Any,
    *,
    site: str = "auto",
    alpha: float = 0.01,
    text_column: str = "text",
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
    near = _by_states(parts[0], parts[1], parts[2], seed)
    ways = {"states": near}
    if model.task in TEXTS:
        texts = [
            [str(r[text_column]) for r in rows_of(x, limit)] for x in (samples, training, held)
        ]
        ways["words"] = _by_words(texts, near)
    tests = {
        name: _Tests(
            reach_below(way.made, way.fresh, alpha),
            reach_below(way.made, way.fresh[~near.leaks], alpha),
            is_lower(way.made, way.fresh, seed),
        )
        for name, way in ways.items()
    }
    return _answer(ways, tests, alpha, near, [*parts[0].rows][-1])


@dataclass(frozen=True, eq=False)
class _Ratios:
    """A number of each sample and of each held-out control, lower = nearer to a training row.

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
class _Tests:
    """The p of samples below the lowest controls, of the same without leaks, and of all lower."""

    below: float
    clean: float
    lower: float


def _by_states(made: Any, seen: Any, held: Any, seed: int) -> _Ratios:
    """Return ratios of distances of states; each item counts by its least ratio.

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
    return _Ratios(names, own, pair, distance, others, fresh, gap == 0)


def _by_words(texts: Any, near: _Ratios) -> _Ratios:
    """Return the fraction of each text's runs of words that no training text has."""
    made, seen, held = texts
    own, pair = shared([made[i] for i in near.samples], seen)
    fresh, _ = shared([held[i] for i in near.controls], seen)
    return _Ratios(near.samples, 1 - own, pair, 1 - own, near.controls, 1 - fresh, near.leaks)


def _answer(
    ways: dict[str, _Ratios], tests: dict[str, _Tests], alpha: float, near: _Ratios, site: str
) -> Answer:
    """Return the verdict of the way that finds more, and its pairs."""
    level = LEVEL / len(ways)
    way = min(ways, key=lambda name: (tests[name].clean, tests[name].lower))
    found, test, n = ways[way], tests[way], len(near.samples)
    bar = _bar(found.fresh[~found.leaks], alpha)
    copied = found.made <= bar
    fraction = float(copied.mean())
    verdict, p = "no copies found", test.clean
    if test.below < level:
        verdict, p = "copies", test.below
    elif test.clean < level:
        verdict = "held rows leak"
    elif test.lower < level:
        verdict, p = "near to its rows", test.lower
    p = min(1.0, len(ways) * p)
    leaks = int(near.leaks.sum())
    lead = f"{leaks} of {len(near.fresh)} held-out rows equal a training row. " if leaks else ""
    what = "lie below the lowest" if verdict != "near to its rows" else "are smaller than those"
    shown = {"states": "ratios of distances", "words": "fractions of new words"}[way]
    return Answer(
        question=QUESTION,
        verdict=verdict,
        level=LEVELS[verdict],
        sentence=f"{lead}{int(copied.sum())} of {n} samples ({fraction:.1%}) are marked as copies, "
        f"where {alpha:.0%} of fresh inputs may be. That {shown} of samples {what} of "
        f"{len(near.fresh)} held-out rows has {'p < 0.001' if p < 0.001 else f'p = {p:.2g}'}"
        f"{' if these rows are left out' * (verdict == 'held rows leak')}.",
        value=fraction,
        null=alpha,
        n=n,
        range=(0.0, 1.0),
        direction="higher",
        rows=_pairs(way, found, near, copied),
        drawn=_picture(way, found, bar),
        facts={
            "site": site,
            "compared by": way,
            "value up to which a sample is marked": f"{bar:.4g}",
            "training rows that were copied": str(len(np.unique(found.pair[copied]))),
        },
        advice=(
            LIMITS,
            *([NEAR] if verdict == "near to its rows" else []),
            *_leaking(leaks, verdict == "held rows leak"),
        ),
    )


def _pairs(way: str, found: _Ratios, near: _Ratios, copied: Any) -> tuple[dict[str, Any], ...]:
    """Return the samples that are nearest to a training row, with that row."""
    return tuple(
        {
            "sample": int(found.samples[i]),
            "training row": int(found.pair[i]),
            "ratio" if way == "states" else "new words": float(found.made[i]),
            "distance": float(near.distance[i]),
            "copy": "yes" if copied[i] else "no",
        }
        for i in np.argsort(found.made, kind="stable")[:SHOWN].tolist()
    )


def _picture(way: str, found: _Ratios, bar: float) -> dict[str, Any]:
    """Return bars of samples and of held-out rows."""
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


def _bar(usual: Any, alpha: float) -> float:
    """Return the value that at most a fraction alpha of fresh inputs reach from above."""
    return low_bar(torch.from_numpy(usual), alpha, none=float(usual.min()) / 2)


def _leaking(leaks: int, is_hidden: bool) -> tuple[str, ...]:
    if not leaks:
        return ()
    said = "They hide copies. " if is_hidden else ""
    return (
        f"{said}Held-out rows that equal training rows are leaks, or rows of this kind recur by "
        "nature. If they are leaks, take them out of the held-out rows and ask again.",
    )
