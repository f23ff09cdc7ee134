"""A vocabulary of codes in place of states: how many codes keep which factor of the inputs."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.cluster import KMeans  # pyright: ignore[reportMissingTypeStubs]

from sonde import InputError, Model, gather, read
from sonde.core import ChartAxis, curves
from sonde.data import rows_of
from sonde.report import Answer
from sonde_studies.parts.figures import most_frequent
from sonde_studies.parts.heads import linear_head
from sonde_studies.parts.rows import Values as Answers
from sonde_studies.parts.rows import apart

QUESTION = "How small a vocabulary of codes keeps what the states say?"
LEAST, TEST, ENOUGH = 80, 0.4, 0.9
SIZES = (4, 16, 64, 256)


def codebook_bottleneck(
    model: Model,
    data: Any,
    *,
    factors: Sequence[str] = ("label",),
    sizes: Sequence[int] = SIZES,
    site: str = "auto",
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Replace the states of a site by the nearest of a few codes, and read each factor from them.

    Codes are the centres of k-means on rows that do not judge. Of a code its most frequent value of
    a factor is said; beside it a linear head on the states as they are, and codes of other rows.

    Example: sonde recipe codebook-bottleneck MODEL DATA --factors label speaker -o codes.html

    Parameters
    ----------
    model : Model
    data : str, path or iterable
        Rows with a column for each factor.
    factors : sequence of str, default=("label",)
        Columns with few values: class, style, speaker, language.
    sizes : sequence of int, default=(4, 16, 64, 256)
        Numbers of codes.
    site : str, default="auto"
        Where the states are read; "auto" is after the last block.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the codes and the rows that judge.
    """
    others = [f for f in factors if f != "label"]
    options = {"limit": limit, "ignore_columns": others or None, "logits": False}
    found = gather(read(model, data, sites=site, **options), progress)
    x = found.rows[[*found.rows][-1]].double().numpy()
    truth = _factors([*factors], rows_of(data, limit), found)
    first = next(iter(truth.values()))
    kept, held = apart(first, TEST, seed)
    rows = list[dict[str, Any]]()
    whole = {f: _probed(x, t, kept, held) for f, t in truth.items()}
    chance = {f: most_frequent(t[held]) for f, t in truth.items()}
    order = np.random.default_rng(seed).permutation(len(kept))
    for size in sorted({min(int(s), len(kept) // 2) for s in sizes}):
        means = KMeans(size, random_state=seed).fit(x[kept])
        codes, asked = (np.asarray(means.predict(x[part])) for part in (kept, held))
        for factor, t in truth.items():
            said = [_said(codes, t[kept[o]], asked) for o in (slice(None), order)]
            right, null = (float((s == t[held]).mean()) for s in said)
            over = max(whole[factor] - chance[factor], 1e-9)
            rows.append({
                "factor": factor, "codes": size, "bits": _bits(asked), "accuracy": right,
                "kept": (right - chance[factor]) / over, "codes of other rows": null,
            })  # fmt: skip
    readable = {f for f in truth if whole[f] - chance[f] > 2 * (0.25 / len(held)) ** 0.5}
    needed = {
        f: next((r["codes"] for r in rows if r["factor"] == f and r["kept"] >= ENOUGH), None)
        for f in truth
        if f in readable
    }
    beyond = f"more than {rows[-1]['codes']}"
    told = [f"{f} needs {n or beyond}" for f, n in needed.items()]
    most = max((n or np.inf for n in needed.values()), default=np.inf)
    return Answer(
        question=QUESTION,
        verdict="nothing to keep" if not needed else f"{most} codes" if most < np.inf else "more",
        level="clear" if needed else "warning",
        sentence=f"Codes that keep {ENOUGH:.0%} of what a linear head reads above chance: "
        f"{', '.join(told) or 'there is nothing that the states say'}. The states as they are name "
        f"{', '.join(f'{f} for {v:.1%}' for f, v in whole.items())} of {len(held)} rows.",
        value=float(most),
        n=len(held),
        direction="lower",
        rows=tuple(
            {"factor": f, "codes": None, "accuracy": v, "kept": 1.0} for f, v in whole.items()
        )
        + tuple(rows),
        drawn=curves(
            "What codes keep of each factor",
            [{k: r[k] for k in ("factor", "codes", "kept")} for r in rows],
            ChartAxis("codes", title="number of codes", log=True),
            ChartAxis("kept", title="kept of what the states say above chance", share=True),
            by="factor",
            levels=[{"value": ENOUGH, "name": "enough"}],
        ),
        facts={f"most frequent {f}": f"{v:.3f}" for f, v in chance.items()},
        advice=(
            "Codes keep first what has most variance at the site, which need not be what the "
            "model was trained for. Bits are the entropy of the codes that rows have.",
        ),
    )


def _factors(names: list[str], rows: Any, found: Any) -> dict[str, Answers]:
    """Return the value of each factor for each row of states."""
    numbers = found.item.numpy()
    truth: dict[str, Answers] = {}
    for name in names:
        if all(name in row for row in rows):
            truth[name] = np.array([str(rows[i][name]) for i in numbers])
        elif name == "label" and bool((found.label >= 0).all()):
            truth[name] = found.label.numpy().astype(str)
        else:
            raise InputError(
                f"codebook_bottleneck: expected the column {name!r} in every row, got rows with "
                f"{', '.join(map(str, rows[0]))}. Name the factors: factors."
            )
        counts = Counter(truth[name].tolist())
        if len(numbers) < LEAST or len(counts) < 2 or min(counts.values()) < 2:
            raise InputError(
                f"codebook_bottleneck: expected {LEAST} or more rows and two or more values of "
                f"{name!r}, each twice or more, got {len(numbers)} rows and {len(counts)} values."
            )
    return truth


def _probed(x: Any, truth: Answers, kept: Answers, held: Answers) -> float:
    return float(linear_head().fit(x[kept], truth[kept]).score(x[held], truth[held]))


def _said(codes: Answers, truth: Answers, asked: Answers) -> Answers:
    """Return for each asked code the value that is most frequent among the rows that have it."""
    usual = Counter(truth.tolist()).most_common(1)[0][0]
    table = {c: Counter(truth[codes == c].tolist()).most_common(1)[0][0] for c in set(codes)}
    return np.array([table.get(c, usual) for c in asked])


def _bits(codes: Answers) -> float:
    share = np.unique(codes, return_counts=True)[1] / len(codes)
    return float(-(share * np.log2(share)).sum())
