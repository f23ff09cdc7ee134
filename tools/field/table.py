"""The tables of the field test as Markdown, and their pictures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from tools.field.faults import FAULTS
from tools.field.jobs import JOBS
from tools.field.judging import MENTIONED, MISSED, NAMED, VERDICTS, WRONG
from tools.field.subjects import MAKERS, subject

Results = Mapping[str, dict[str, Any]]
Kept = Mapping[str, Sequence[str]]
VERDICT_CELL = 4
COLOURS = {NAMED: "#2a7f62", MENTIONED: "#9ac1ae", MISSED: "#c9c9c9", WRONG: "#c0392b"}
MOST = 110


def table_row(*cells: Any) -> str:
    """Return a line of a Markdown table."""
    return "| " + " | ".join(str(c).replace("|", "/").replace("\n", " ") for c in cells) + " |"


def _percent(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, float) else str(value or "")


def models() -> str:
    """Return a line for each subject: what it is and what plain torch says of it."""
    lines = [table_row("subject", "model; data", "rows", "by plain torch"), table_row(*["---"] * 4)]
    for name in MAKERS:
        said, _ = subject(name)
        measure = "" if said.figure is None else ("R^2 " if said.kind == "regression" else "")
        figure = f"{measure}{said.figure:.3f}" if said.figure is not None else "no labels"
        lines.append(table_row(name, said.carried, said.n_rows, figure))
    return "\n".join(lines)


def kept_rows(page: str, heading: str) -> Kept:
    """Return the rows of the table below a heading of a page, by their first cell.

    They stand for what was not run again: a page may be renewed in parts.
    """
    _, _, below = page.partition(f"## {heading}\n")
    lines = [v for v in below.partition("\n## ")[0].splitlines() if v.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return {row[0]: row for row in rows}


def jobs(results: Results, kept: Kept | None = None) -> str:
    """Return what came of every job, and what a scan costs beside the forward.

    Parameters
    ----------
    results : mapping
    kept : mapping, optional
        Rows of a page, for the jobs that have no result.
    """
    head = [*JOBS, "scan, s", "plain forward, s", "warnings and errors"]
    lines = [table_row("subject", *head), table_row(*["---"] * (len(head) + 1))]
    for name in MAKERS:
        old = [*((kept or {}).get(name) or [name]), *[""] * len(head)][1 : len(head) + 1]
        got = [results.get(f"{name}.{job}") for job in JOBS]
        cells = [r["verdict"] if r else was for r, was in zip(got, old, strict=False)]
        costs, scan = old[len(JOBS) :], results.get(f"{name}.scan")
        if scan:
            loud = [text.split(" ")[0] for text in scan["loud"]]
            costs = [scan["seconds"], scan["plain_seconds"], ", ".join(loud) or "none"]
        lines.append(table_row(name, *cells, *costs))
    return "\n".join(lines)


def faults(results: Results, kept: Kept | None = None) -> str:
    """Return a line for each fault that was tried, now or for the page that has the `kept` rows."""
    head = ("fault", "what a correct report says", "healthy", "planted", "result", "stated cause")
    lines = [table_row(*head), table_row(*["---"] * len(head))]
    for name, fault in FAULTS.items():
        if name in results:
            r = results[name]
            cause = shorten(r["cause"], MOST, placeholder=" ...")
            figures = (_percent(r["healthy"]), _percent(r["plain"]))
            lines.append(table_row(name, fault.says, *figures, r["verdict"], cause))
        elif kept and name in kept:
            lines.append(table_row(*[*kept[name], ""][: len(head)]))
    return "\n".join(lines)


def verdicts(results: Results, kept: Kept | None = None) -> dict[str, str]:
    """Return the verdict of each fault that was tried."""
    old = {name: row[VERDICT_CELL] for name, row in (kept or {}).items() if name in FAULTS}
    return old | {name: r["verdict"] for name, r in results.items()}


def summary(results: Results, kept: Kept | None = None) -> str:
    """Return one line that counts verdicts."""
    found = verdicts(results, kept)
    counts = Counter(found.values())
    told = ", ".join(f"{counts[v]} {v}" for v in VERDICTS if counts[v])
    return f"{len(found)} of {len(FAULTS)} planted faults tried: {told}"


def commits(results: Results) -> str:
    """Return which results come from which commit, as a list; others stood on the page before."""
    found: dict[str, list[str]] = {}
    for name, r in results.items():
        found.setdefault(r.get("commit", "an earlier commit"), []).append(name)
    return "\n".join(f"- at {commit}: {', '.join(names)}" for commit, names in found.items())


def picture(found: Mapping[str, str], path: Path) -> None:
    """Draw how many faults of every subject were named, as a PNG.

    Parameters
    ----------
    found : mapping of str to str
        Verdicts by fault.
    path : Path
    """
    import altair

    values = [
        {"subject": name.split("/")[0], "result": said, "n": 1} for name, said in found.items()
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
        A page with the two marks. What stands outside of them is kept, and so are rows between
        them for which there is no new result.
    made, got : mapping
        Results of jobs and of faults.
    """
    start, end = "<!-- printed by make field -->", "<!-- end of what make field prints -->"
    head, _, rest = before.partition(start)
    old, _, tail = rest.partition(end)
    kept = kept_rows(old, "Planted faults")
    parts = (
        *("## The models", models()),
        *("## Jobs on healthy models", jobs(made, kept_rows(old, "Jobs on healthy models"))),
        *("## Planted faults", summary(got, kept) + "."),
        *("![results](_static/field.png)", faults(got, kept)),
        *("## Run again", commits({**made, **got})),
    )
    return head + "\n\n".join([start, *parts, end]) + tail
