"""What each size of a model costs, as a page with a chart and as lines for a terminal."""

from pathlib import Path
from typing import Any

from sonde.core.chart import Chart, ChartAxis, curves, marks, overlaid
from sonde.report._format import number, plural, share, shown
from sonde.report._markup import ElementIds
from sonde.report._parts import command, figure, tabled
from sonde.report._picture import Numbers, Picture
from sonde.report.compress_terminal import mib
from sonde.report.document import Head, Section, document_page, save_document

COLUMNS = ("size", "method", "MiB", "x smaller", "KL", "KL, 99 %", "other answer", "best")


def search_to_html(found: dict[str, Any]) -> str:
    """Return a search as one self-contained page.

    Parameters
    ----------
    found : dict
        JSON of a search, ``sonde-compress-search/1``.
    """
    names = ElementIds()
    parts = [_curve(found, names), _table(found, names), _next(found)]
    return document_page(found, _head(found), parts)


def save_search(found: dict[str, Any], path: str | Path) -> Path:
    """Write a search as a page (``.html``) or as JSON, by the name's ending."""
    return save_document(found, path, search_to_html, "save_search")


def search_to_text(found: dict[str, Any]) -> str:
    """Return the verdict and a line for each trial, the smallest first."""
    lines = [search_verdict(found)]
    for one in found["trials"]:
        told, mark = one["fidelity"], "*" if one["best"] else " "
        lines.append(
            f"{mark} {one['size']:>7} {one['method']:<18} {mib(one['n_bytes']):>10}  "
            f"{found['bytes'] / one['n_bytes']:4.1f} x  KL {number(told['kl']):<9} "
            f"another answer {share(told['changed'])}"
        )
    lines.append("* no other trial is smaller and nearer at once")
    return "\n".join(lines)


def search_verdict(found: dict[str, Any]) -> str:
    """Return in one sentence what the smallest near models are."""
    best = [one for one in found["trials"] if one["best"]]
    near = [one for one in best if one["fidelity"]["kl"] <= found["max_kl"]]
    if not near:
        least = min(best, key=lambda one: one["fidelity"]["kl"])
        kl = number(least["fidelity"]["kl"])
        return (
            f"No trial stays below {found['max_kl']:g} nats; the nearest is {least['size']} by "
            f"{least['method']} with {kl}"
        )
    one = min(near, key=lambda one: one["n_bytes"])
    return (
        f"{one['size']} by {one['method']} is the smallest below {found['max_kl']:g} nats: "
        f"{found['bytes'] / one['n_bytes']:.1f} x smaller files, KL "
        f"{number(one['fidelity']['kl'])}, another answer on {share(one['fidelity']['changed'])}"
    )


def _head(found: dict[str, Any]) -> Head:
    facts = [
        ("model", shown(found["model"], 120)),
        ("data", shown(found["data"], 120)),
        ("weight files", mib(found["bytes"])),
        ("tried", plural(len(found["trials"]), "setting")),
        ("calibrated on", plural(found["calibrated_on"], "example")),
        ("compared on", f"{found['compared_on']:,} others"),
    ]
    return Head(
        "compress search",
        "What each size of the model costs",
        search_verdict(found),
        facts,
        subject=f"compress search {shown(found['model'], 80)}",
    )


def _curve(found: dict[str, Any], names: ElementIds) -> Section:
    rows = [
        {
            "MiB": one["n_bytes"] / 2**20,
            "KL": max(one["fidelity"]["kl"], 1e-9),
            "method": one["method"],
            "best": one["best"],
            "tip": f"{one['size']} by {one['method']}: {mib(one['n_bytes'])}, KL "
            f"{number(one['fidelity']['kl'])}",
        }
        for one in found["trials"]
        if one["fidelity"]["kl"] is not None
    ]
    message = "Divergence of the answers by the size of the files; the line joins the best trials"
    across, up = ChartAxis("MiB", zero=False), ChartAxis("KL", log=True)

    def draw(width: int) -> Chart:
        best = [row for row in rows if row["best"]]
        points = marks(message, rows, across, up, by="method")
        return overlaid(points, curves(message, best, across, up, dots=False))

    picture = Picture("size-kl", message, draw, Numbers(COLUMNS, _rows(found), "trials"))
    lead = "Read off what a size costs: the line is the least divergence that was found for files "
    lead += "of at most this size. Each step up the axis of divergence is a factor."
    return Section("curve", "Size against divergence", [figure(picture, names)], lead)


def _table(found: dict[str, Any], names: ElementIds) -> Section:
    made = tabled(Numbers(COLUMNS, _rows(found), "trials"), names, "All trials")
    lead = "KL is the mean over answers in nats, on examples that calibrated nothing. A trial is "
    lead += "best if no other is smaller and nearer at once."
    return Section("trials", "Trials", [made], lead)


def _rows(found: dict[str, Any]) -> tuple[tuple[Any, ...], ...]:
    return tuple(
        (
            one["size"],
            one["method"],
            one["n_bytes"] / 2**20,
            found["bytes"] / one["n_bytes"],
            one["fidelity"]["kl"],
            one["fidelity"]["kl_99"],
            one["fidelity"]["changed"],
            "best" if one["best"] else "",
        )
        for one in found["trials"]
    )


def _next(found: dict[str, Any]) -> Section:
    best = [one for one in found["trials"] if one["best"]]
    near = [one for one in best if one["fidelity"]["kl"] <= found["max_kl"]]
    one = min(near, key=lambda one: one["n_bytes"]) if near else best[-1]
    words = f"sonde compress {found['model']} {found['data']} --to {one['size']} "
    words += f"--method {one['method']} -o SMALL"
    return Section("next", "Write it", [command(words)], "The command that writes this model.")
