"""A codebook in place of states: the number of codes that keeps each input factor."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.cluster import KMeans  # pyright: ignore[reportMissingTypeStubs]

from sonde import Model, gather, read
from sonde.core import ChartAxis, curves
from sonde.data import rows_of
from sonde.report import Answer
from sonde_studies.parts.heads import linear_head
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.owners import groups_told, owners_of, shuffled_labels
from sonde_studies.parts.rows import apart, classes_of

QUESTION = "How small a vocabulary of codes keeps what the states say?"
LEAST, TEST, ENOUGH, NULL = 80, 0.4, 0.9, "codes of other rows"


@copies_once()
def codebook_bottleneck(
    model: Model,
    data: Any,
    *,
    factors: Sequence[str] = ("label",),
    sizes: Sequence[int] = (4, 16, 64, 256),
    site: str = "auto",
    group_column: str | None = None,
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
    group_column : str, optional
        Column of the person or document of a row, if its name is not "group". Rows of one group,
        and near copies, are never on both sides of a split.
    limit : int, optional
        Read only the first rows.
    seed : int, default=0
        Draws the codes and the rows that judge.
    """
    options: dict[str, Any] = {"group_column": group_column, "limit": limit, "logits": False}
    options |= {"ignore_columns": [f for f in factors if f != "label"] or None}
    found = gather(read(model, data, sites=site, **options), progress)
    given, own = rows_of(data, limit), zip(found.item.tolist(), found.label.tolist(), strict=True)
    rows = [({"label": kind} if kind >= 0 else {}) | given[i] for i, kind in own]
    truth = {f: classes_of("codebook_bottleneck", rows, f, LEAST) for f in factors}
    owner = owners_of(data, group_column, limit)[found.item.numpy()]
    x, (kept, held) = found.last.numpy(), apart(truth[factors[0]], TEST, seed, owner=owner)
    fitted = {f: linear_head().fit(x[kept], t[kept]) for f, t in truth.items()}
    whole = {f: float(head.score(x[held], truth[f][held])) for f, head in fitted.items()}
    chance = {f: max(Counter(t[held]).values()) / len(held) for f, t in truth.items()}
    other = {f: shuffled_labels(t[kept], owner[kept], seed) for f, t in truth.items()}
    table = list[dict[str, Any]]()
    for size in sorted({min(int(s), len(kept) // 2) for s in sizes}):
        codes = np.asarray(KMeans(size, random_state=seed).fit(x[kept]).predict(x))
        share = np.unique(codes[held], return_counts=True)[1] / len(held)
        row: dict[str, Any] = {"codes": size, "bits": float(-(share * np.log2(share)).sum())}
        for f, t in truth.items():
            said = [_said(codes[kept], own, codes[held]) for own in (t[kept], other[f])]
            right, null = (float((s == t[held]).mean()) for s in said)
            over = (right - chance[f]) / max(whole[f] - chance[f], 1e-9)
            table.append({"factor": f, **row, "accuracy": right, "kept": over, NULL: null})
    readable = [f for f in truth if whole[f] - chance[f] > 2 * (0.25 / len(held)) ** 0.5]
    enough = [r for r in table if r["kept"] >= ENOUGH]
    needed = {f: next((r["codes"] for r in enough if r["factor"] == f), None) for f in readable}
    beyond = f"more than {table[-1]['codes']}"
    told = [f"{f} needs {n or beyond}" for f, n in needed.items()]
    most = max((n or np.inf for n in needed.values()), default=np.inf)
    points = [{k: r[k] for k in ("factor", "codes", "kept")} for r in table]
    kept_axis = ChartAxis("kept", title="kept of what the states say above chance", share=True)
    codes_axis = ChartAxis("codes", title="number of codes", log=True)
    look: dict[str, Any] = {"by": "factor", "levels": [{"value": ENOUGH, "name": "enough"}]}
    whole_rows = [
        {"factor": f, "codes": None, "accuracy": v, "kept": 1.0} for f, v in whole.items()
    ]
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
        rows=(*whole_rows, *table),
        drawn=curves("What codes keep of each factor", points, codes_axis, kept_axis, **look),
        facts={f"most frequent {f}": f"{v:.3f}" for f, v in chance.items()} | groups_told(owner),
        advice=(
            "Codes keep first what has most variance at the site, which need not be what the "
            "model was trained for. Bits are the entropy of the codes that rows have.",
        ),
    )


def _said(codes: Any, truth: Any, asked: Any) -> Any:
    """Return, for each queried code, the most frequent value among its rows."""
    usual = Counter(truth.tolist()).most_common(1)[0][0]
    table = {c: Counter(truth[codes == c].tolist()).most_common(1)[0][0] for c in set(codes)}
    return np.array([table.get(c, usual) for c in asked])
