"""The document of a search over model sizes: trials, and a chart of size and divergence."""

from typing import Any

from sonde.core.chart import Chart, ChartAxis, curves, marks, overlaid
from sonde.report._format import number, plural, share, shown
from sonde.report._picture import Numbers, Picture
from sonde.report.compress import mib
from sonde.report.document import Command, Document, Figure, Section, Table

COLUMNS = ("size", "method", "MiB", "x smaller", "KL", "KL, 99 %", "other answer", "best")
BRIEF = ("size", "method", "MiB", "x smaller", "KL", "other answer", "best")


def document(found: dict[str, Any]) -> Document:
    """Return a search over model sizes as a document.

    Parameters
    ----------
    found : dict
        JSON of a search, ``sonde-compress-search/1``.
    """
    facts = [
        ("model", shown(found["model"], 120)),
        ("data", shown(found["data"], 120)),
        ("weight files", mib(found["bytes"])),
        ("tried", plural(len(found["trials"]), "setting")),
        ("calibrated on", plural(found["calibrated_on"], "example")),
        ("compared on", f"{found['compared_on']:,} others"),
    ]
    return Document(
        "compress search",
        "What each size of the model costs",
        _verdict(found),
        facts,
        [_curve(found), _trials(found), _next(found)],
        subject=f"compress search {shown(found['model'], 80)}",
    )


def _near(found: dict[str, Any]) -> dict[str, Any] | None:
    """Return the smallest of the best trials with a small enough divergence, or None."""
    near = [t for t in found["trials"] if t["best"] and t["fidelity"]["kl"] <= found["max_kl"]]
    return min(near, key=lambda one: one["n_bytes"], default=None)


def _verdict(found: dict[str, Any]) -> str:
    one = _near(found)
    if one is None:
        best = [trial for trial in found["trials"] if trial["best"]]
        least = min(best, key=lambda one: one["fidelity"]["kl"])
        kl = number(least["fidelity"]["kl"])
        return (
            f"No trial stays below {found['max_kl']:g} nats; the nearest trial is "
            f"{least['size']} by {least['method']} with {kl}"
        )
    return (
        f"{one['size']} by {one['method']} is the smallest below {found['max_kl']:g} nats: "
        f"{found['bytes'] / one['n_bytes']:.1f} x smaller files, KL "
        f"{number(one['fidelity']['kl'])}, another answer on {share(one['fidelity']['changed'])}"
    )


def _curve(found: dict[str, Any]) -> Section:
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

    picture = Picture("size-kl", message, draw, Numbers(COLUMNS, _trial_rows(found), "trials"))
    lead = "The cost of each size: the line is the smallest divergence found for files "
    lead += "of at most this size. The axis of divergence is logarithmic."
    return Section("curve", "Size against divergence", [Figure(picture)], lead, where="page")


def _trials(found: dict[str, Any]) -> Section:
    table = Table(Numbers(COLUMNS, _trial_rows(found), "trials"), "All trials", folded=True,
                 kinds={"other answer": "share"}, brief=BRIEF, most=100)  # fmt: skip
    lead = (
        "KL is the mean over answers in nats, on examples that were not used for calibration. "
        "A trial is best if no other trial has both smaller files and a lower divergence."
    )
    return Section("trials", "Trials", [table], lead)


def _trial_rows(found: dict[str, Any]) -> tuple[tuple[Any, ...], ...]:
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
    one = _near(found) or [trial for trial in found["trials"] if trial["best"]][-1]
    words = f"sonde compress {found['model']} {found['data']} --to {one['size']} "
    words += f"--method {one['method']} -o SMALL"
    return Section("next", "Write it", [Command(words)], "The command that writes this model.")
