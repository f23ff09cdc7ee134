"""Sentences about a model that returns vectors, without labels."""

from typing import Any, Final

from sonde.report._format import number, plural, share

POOLINGS: Final = {
    "mean": "mean of tokens",
    "mean+special": "mean of all tokens, special tokens included",
    "cls": "first token",
    "last": "last token",
}
"""Reducers in words."""


def vectors_sentence(report: dict[str, Any]) -> str:
    """Return a sentence about a model's embeddings, or "" for other models.

    Examples
    --------
    >>> found = {"dim": 384, "pooling": "cls", "n_rows": 300, "mean_cosine": 0.91, "n_copies": 0}
    >>> found |= {"dimensions": 4.2, "n_near": 7, "n_far": 1, "n_clusters": 3, "n_clustered": 240}
    >>> for part in vectors_sentence({"vectors": found}).split("; "):
    ...     print(part)
    384 numbers each, pooled by the first token
    two rows have a cosine of 0.91 on average (near 1: rows differ in few directions)
    4.2 of 384 dimensions in use
    no copies, 7 near copies, 1 outlier
    3 clusters with 80 % of 300 rows
    with labels (--label-column), probes show what the vectors encode
    """
    vectors = report.get("vectors")
    if vectors is None:
        return ""
    pooling = POOLINGS.get(vectors["pooling"], vectors["pooling"])
    cosine = vectors["mean_cosine"]
    narrow = " (near 1: rows differ in few directions)" if (cosine or 0) > 0.7 else ""
    parts = [f"{vectors['dim']} numbers each, pooled by the {pooling}"]
    if cosine is not None:
        parts.append(f"two rows have a cosine of {number(cosine)} on average{narrow}")
    if vectors["dimensions"] is not None:
        parts.append(f"{number(vectors['dimensions'])} of {vectors['dim']} dimensions in use")
    copies = [_count(vectors["n_copies"], "cop", "y", "ies")]
    if vectors["n_near"] is not None:
        copies.append(_count(vectors["n_near"], "near cop", "y", "ies"))
    parts.append(", ".join([*copies, _count(vectors["n_far"], "outlier", "", "s")]))
    rows = plural(vectors["n_rows"], "row")
    if vectors["n_clusters"]:
        inside = share(vectors["n_clustered"] / vectors["n_rows"])
        parts.append(f"{plural(vectors['n_clusters'], 'cluster')} with {inside} of {rows}")
    else:
        parts.append(f"no clusters among {rows}")
    near = vectors.get("neighbours")
    if near is not None:
        parts.append(
            f"the nearest other row has the same label for {share(near['same'])} of "
            f"{plural(near['n_rows'], 'labelled row')} ({share(near['low'])} to "
            f"{share(near['high'])}; by chance {share(near['chance'])})"
        )
    if report.get("labels") is None:
        parts.append(_without_probe(report))
    return "; ".join(parts)


def _without_probe(report: dict[str, Any]) -> str:
    """Return why no probe was fitted: no labels, or too few of two classes."""
    data = (report.get("provenance") or {}).get("data") or {}
    if data.get("label_column") is None:
        return "with labels (--label-column), probes show what the vectors encode"
    return "no probe was fitted: a probe needs 30 rows (or groups) of each of two classes"


def _count(n: int, stem: str, one: str, many: str) -> str:
    return f"{n or 'no'} {stem}{one if n == 1 else many}"
