"""The tables of the field test as Markdown, and their pictures."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

from tools.field.faults import FAULTS
from tools.field.jobs import JOBS
from tools.field.judging import MENTIONED, MISSED, NAMED, VERDICTS, WRONG
from tools.field.subjects import MAKERS, subject

Results = Mapping[str, dict[str, Any]]
COLOURS = {NAMED: "#2a7f62", MENTIONED: "#9ac1ae", MISSED: "#c9c9c9", WRONG: "#c0392b"}
MOST = 110


def _row(*cells: Any) -> str:
    return "| " + " | ".join(str(c).replace("|", "/").replace("\n", " ") for c in cells) + " |"


def _percent(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, float) else str(value or "")


def models() -> str:
    """Return a line for each subject: what it is and what plain torch says of it."""
    lines = [_row("subject", "model; data", "rows", "by plain torch"), _row(*["---"] * 4)]
    for name in MAKERS:
        said, _ = subject(name)
        measure = "" if said.figure is None else ("R^2 " if said.kind == "regression" else "")
        figure = f"{measure}{said.figure:.3f}" if said.figure is not None else "no labels"
        lines.append(_row(name, said.carried, said.n_rows, figure))
    return "\n".join(lines)


def jobs(results: Results) -> str:
    """Return what came of every job, and what a scan costs beside the forward."""
    head = [*JOBS, "scan, s", "plain forward, s", "warnings and errors"]
    lines = [_row("subject", *head), _row(*["---"] * (len(head) + 1))]
    for name in MAKERS:
        got = {job: results.get(f"{name}.{job}") for job in JOBS}
        scan = got["scan"] or {}
        loud = [text.split(" ")[0] for text in scan.get("loud", ())]
        cells = [(r or {}).get("verdict", "") for r in got.values()]
        seconds = (scan.get("seconds", ""), scan.get("plain_seconds", ""))
        lines.append(_row(name, *cells, *seconds, ", ".join(loud) or ("none" if scan else "")))
    return "\n".join(lines)


def faults(results: Results) -> str:
    """Return a line for each fault that was tried."""
    head = ("fault", "what a correct report says", "healthy", "planted", "result", "stated cause")
    lines = [_row(*head), _row(*["---"] * len(head))]
    for name, fault in FAULTS.items():
        if name in results:
            r = results[name]
            cause = shorten(r["cause"], MOST, placeholder=" ...")
            figures = (_percent(r["healthy"]), _percent(r["plain"]))
            lines.append(_row(name, fault.says, *figures, r["verdict"], cause))
    return "\n".join(lines)


def summary(results: Results) -> str:
    """Return one line that counts verdicts."""
    counts = Counter(r["verdict"] for r in results.values())
    told = ", ".join(f"{counts[v]} {v}" for v in VERDICTS if counts[v])
    return f"{len(results)} of {len(FAULTS)} planted faults tried: {told}"


def picture(results: Results, path: Path) -> None:
    """Draw how many faults of every subject were named, as a PNG."""
    import altair

    values = [
        {"subject": name.split("/")[0], "result": r["verdict"], "n": 1}
        for name, r in results.items()
    ]
    colours = COLOURS | {v: "#8e7cc3" for v in VERDICTS if v not in COLOURS}
    chart = (
        altair.Chart(altair.Data(values=values))
        .mark_bar()
        .encode(
            x=altair.X("sum(n):Q", title="planted faults"),
            y=altair.Y("subject:N", title=None),
            color=altair.Color(
                "result:N",
                title=None,
                sort=list(VERDICTS),
                scale=altair.Scale(domain=list(VERDICTS), range=[colours[v] for v in VERDICTS]),
            ),
        )
        .properties(width=480)
    )
    chart.save(path, scale_factor=2)


def page(before: str, made: Results, got: Results) -> str:
    """Return the page with its generated part renewed.

    Parameters
    ----------
    before : str
        A page with the two marks; what stands outside of them is kept.
    made, got : mapping
        Results of jobs and of faults.
    """
    start, end = "<!-- printed by make field -->", "<!-- end of what make field prints -->"
    head, _, rest = before.partition(start)
    _, _, tail = rest.partition(end)
    parts = ("## The models", models(), "## Jobs on healthy models", jobs(made))
    planted = (
        "## Planted faults",
        summary(got) + ".",
        "![results](_static/field.png)",
        faults(got),
    )
    return head + "\n\n".join([start, *parts, *planted, end]) + tail
