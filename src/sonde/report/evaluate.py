"""Separation of out-of-distribution from in-distribution rows by scores, as page or picture."""

from pathlib import Path
from typing import Any, Final

from sonde.files.places import to_path
from sonde.report._format import number, plural, share, shown
from sonde.report._picture import Numbers, Picture
from sonde.report._pictures_scores import (
    auroc_picture,
    auroc_text,
    histogram_picture,
    named,
    roc_picture,
)
from sonde.report._standalone import drawn
from sonde.report.document import Document, Part, Prose, Section, Table, figures
from sonde.report.documents import ENDINGS, save_document
from sonde.run.instruments.entries import place_of

SCHEMA: Final = "sonde-evaluate/1"
MOST_DRAWN: Final = 4

_COLUMNS: Final = {
    "instrument": "detector",
    "site": "site",
    "auroc": "AUROC",
    "auroc_low": "low",
    "auroc_high": "high",
    "fpr_at_95tpr_unusual": "FPR@95",
    "aupr": "AUPR",
    "false_alarms": "false",
    "found": "found",
    "n_usual": "usual",
    "n_unusual": "unusual",
}

CHOSEN: Final = (
    "The best of {n:,} detectors and sites was chosen on these same rows, so its scores "
    "are optimistic: report them on rows that were not used to choose."
)

# They stand in the header too.
_COUNTS: Final = ("n_usual", "n_unusual")
_SHARES: Final = ("fpr_at_95tpr_unusual", "false_alarms", "found")


def evaluation(
    rows: list[dict[str, Any]],
    curves: list[dict[str, Any]],
    *,
    alpha: float,
    resamples: int,
    usual: str = "",
    unusual: str = "",
    trust: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the contents of an evaluation page as JSON.

    Parameters
    ----------
    rows, curves : list of dict
        What ``evaluate`` and ``curves`` of ``sonde.run.scoring`` return.
    alpha : float
    resamples : int
    usual, unusual : str, default=""
        What the two tables are called.
    trust : dict, optional
        What ``trust`` of ``sonde.run.scoring`` returns.
    """
    return {
        "schema": SCHEMA, "alpha": alpha, "resamples": resamples, "usual": usual,
        "unusual": unusual, "rows": rows, "curves": curves,
        "trust": trust,
    }  # fmt: skip


def document(found: dict[str, Any]) -> Document:
    """Return an evaluation as a document: the best detector and site, and their lead.

    Every figure stands in its table; histograms and ROC curves are drawn for at most 4 detectors
    and sites, for each detector first where its AUROC is highest.

    Parameters
    ----------
    found : dict
        JSON of an evaluation, ``sonde-evaluate/1``.
    """
    best, many = best_of(found["rows"]), len(found["rows"])
    facts = [
        ("usual rows", _counted(best["n_usual"], found["usual"])),
        ("unusual rows", _counted(best["n_unusual"], found["unusual"])),
        ("requested false-alarm rate", share(found["alpha"])),
        ("false alarms", _rate(best)),
        ("unusual rows found", None if best["found"] is None else share(best["found"])),
        ("resamples behind intervals", f"{found['resamples']:,}"),
    ]
    notes = [CHOSEN.format(n=many)] if many > 1 else []
    notes += [trust_text(found["trust"])] if found["trust"] else []
    return Document(
        "evaluate",
        "In-distribution against out-of-distribution rows",
        _verdict(best),
        facts,
        [_layers(found), _curves(found), _figures_section(found)],
        notes=notes,
    )


def save_evaluation(found: dict[str, Any], path: str | Path) -> Path:
    """Write an evaluation as a page, as JSON, or as SVG or PNG pictures of the best detector."""
    path = to_path(path)
    if path.suffix.lower() in ENDINGS:
        return save_document({**found, "curves": _drawn(found)}, path)
    return drawn(pictures_of(found)).save(path)


def best_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row with the highest AUROC."""
    return max(rows, key=lambda row: -1.0 if row["auroc"] is None else row["auroc"])


def trust_text(found: dict[str, Any], kinds: tuple[str, str] = ("usual", "unusual rows")) -> str:
    """Return a sentence on the detector and site to trust."""
    n = found["n_candidates"]
    if found["trusted"] is None:
        return (
            "No detector can be recommended: too few examples to choose on one half and "
            "evaluate on the other (8 of either kind in each)."
        )
    who = named(found["instrument"], found["site"])
    rows = f"{found['n_usual']:,} {kinds[0]} and {found['n_unusual']:,} {kinds[1]}"
    has = f"AUROC {auroc_text(found)}"
    if found["trusted"]:
        how = (
            f"chosen among {n} on one half of the examples, it has {has} on the other"
            if n > 1
            else f"it has {has}"
        )
        return f"Trust {who}: {how}, {rows}."
    if n == 1:
        return f"Trust no detector: {who} has {has}, {rows}, which is not significant."
    return (
        f"Trust no detector: the best of {n} on one half of the examples, {who}, has {has} on "
        f"the other, {rows}, which is not significant."
    )


def pictures_of(found: dict[str, Any]) -> list[Picture]:
    """Return the pictures of the best detector and site, and its AUROC by site."""
    best = best_of(found["rows"])
    of_method = [row for row in found["rows"] if row["instrument"] == best["instrument"]]
    layers = [auroc_picture(of_method, best["instrument"])] if len(of_method) > 1 else []
    curve = next(c for c in found["curves"] if _key(c) == _key(best))
    pictures = [*_pair(curve, best, found["alpha"]), *layers]
    return [picture for picture in pictures if picture is not None]


def _pair(
    curve: dict[str, Any], row: dict[str, Any], alpha: float
) -> tuple[Picture | None, Picture]:
    who = named(row["instrument"], row["site"])
    histogram = histogram_picture(curve["histogram"], who, alpha=alpha)
    return histogram, roc_picture(curve["roc"], who, auroc_text(row))


def _verdict(best: dict[str, Any]) -> str:
    if best["auroc"] is None:
        return "No detector has an AUROC."
    return f"Best: {named(best['instrument'], best['site'])}, AUROC {auroc_text(best)}"


def _counted(n: int, name: str) -> str:
    return f"{n:,} of {shown(name, 120)}" if name else f"{n:,}"


def _rate(row: dict[str, Any]) -> str:
    if row["false_alarms"] is None:
        return "not known: the detectors were not calibrated"
    ends = f"{share(row['false_alarms_low'])} to {share(row['false_alarms_high'])}"
    return f"{share(row['false_alarms'])} ({ends})"


def _layers(found: dict[str, Any]) -> Section:
    methods = dict.fromkeys(row["instrument"] for row in found["rows"])
    parts: list[Part] = []
    for method in methods:
        of_method = [row for row in found["rows"] if row["instrument"] == method]
        parts += figures(auroc_picture(of_method, method) if len(of_method) > 1 else None)
    lead = (
        "Probability that an out-of-distribution row scores higher than an in-distribution "
        "row, at each site."
    )
    if not parts:
        parts.append(Prose("Each detector was scored at one site: see the table.", "empty"))
        lead = ""
    return Section("layers", "AUROC by site", parts, lead, where="verbose")


def _curves(found: dict[str, Any]) -> Section:
    rows = {_key(row): row for row in found["rows"]}
    parts: list[Part] = []
    for curve in _drawn(found):
        row = rows[_key(curve)]
        histogram, roc = _pair(curve, row, found["alpha"])
        parts.append(Prose(named(row["instrument"], row["site"]), "heading"))
        words = "All scores are infinite: there is no histogram."
        parts += figures(histogram) or [Prose(words, "empty")]
        parts += figures(roc)
    few, of = len(_drawn(found)), len(found["curves"])
    left = f"Drawn: {few} of {plural(of, 'detector and site', 'detectors and sites')}."
    return Section("curves", "Scores and ROC", parts, left if few < of else "", where="page")


def _drawn(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the curves to draw: each detector at its best site, then the next best."""
    seen: dict[str, int] = {}
    order = []
    height = {_key(row): row["auroc"] or 0.0 for row in found["rows"]}
    for curve in sorted(found["curves"], key=lambda c: -height[_key(c)]):
        rank = seen.setdefault(curve["instrument"], 0)
        seen[curve["instrument"]] += 1
        order.append((rank, curve))
    return [curve for _, curve in sorted(order, key=lambda pair: pair[0])][:MOST_DRAWN]


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["instrument"], row["site"]


def _place(row: dict[str, Any]) -> str:
    return place_of(row["instrument"], row["site"]).removesuffix(":out")


def _figures_section(found: dict[str, Any]) -> Section:
    placed = [{**r, "site": _place(r)} for r in found["rows"]]
    constant = [name for name in _COUNTS if len({row[name] for row in placed}) == 1]
    kept = {key: title for key, title in _COLUMNS.items() if key not in constant}
    rows = tuple(tuple(row[key] for key in kept) for row in placed)
    at_most = f"with p at most {number(found['alpha'])}"
    meanings = {
        "FPR@95": "false-positive rate at the score that detects 95 % of out-of-distribution rows",
        "AUPR": "average precision, with out-of-distribution rows as positives",
        "false": f"fraction of in-distribution rows {at_most}",
        "found": f"fraction of out-of-distribution rows {at_most}",
    }
    kinds = {_COLUMNS[key]: "share" for key in _SHARES}
    numbers = Numbers(tuple(kept.values()), rows, "figures")
    table = Table(numbers, kinds=kinds, meanings=meanings, most=len(rows))
    return Section("figures", "All figures", [table])
