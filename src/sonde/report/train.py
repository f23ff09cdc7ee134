"""What a fine-tuning with losses at sites gained, as one page."""

from pathlib import Path
from typing import Any

from sonde.core.chart import Chart, ChartAxis, curves
from sonde.report._fit import tip
from sonde.report._format import number, plural, shown
from sonde.report._markup import ElementIds
from sonde.report._parts import command, figure, table, tabled
from sonde.report._picture import Axis, Numbers, Picture
from sonde.report.document import Head, Section, document_page, save_document
from sonde.report.train_terminal import arms, figures_of, train_verdict


def train_to_html(found: dict[str, Any]) -> str:
    """Return a fine-tuning as one self-contained page.

    Parameters
    ----------
    found : dict
        JSON of a fine-tuning, ``sonde-train/1``.
    """
    names = ElementIds()
    parts = [
        _task(found, names),
        _terms(found, names),
        _curves(found, names),
        _inside(found, names),
        _undo(found),
    ]
    return document_page(found, _head(found), parts)


def save_train(found: dict[str, Any], path: str | Path) -> Path:
    """Write a fine-tuning as a page (``.html``) or as JSON, by the name's ending."""
    return save_document(found, path, train_to_html, "save_train")


def _head(found: dict[str, Any]) -> Head:
    recipe = found["recipe"]
    facts = [
        ("model", shown(found["model"], 120)),
        ("data", shown(found["data"], 120)),
        ("losses", shown(found["terms_typed"], 200)),
        ("at", shown(", ".join(found["sites_typed"]), 200)),
        ("weight", number(recipe["weight"])),
        ("parameters", recipe["scope"]),
        ("trained on", plural(found["trained_on"], "example")),
        ("epochs, rate", f"{recipe['epochs']}, {recipe['rate']:g}"),
        ("seeds", str(len(found["seeds"]))),
        ("figures on", f"{found['held']:,} other examples"),
        ("written to", shown(found["output"], 200)),
    ]
    heading = "What the losses at sites changed"
    subject = f"train {shown(found['model'], 80)}"
    return Head("train", heading, train_verdict(found), facts, subject=subject)


def _task(found: dict[str, Any], names: ElementIds) -> Section:
    rows = []
    for arm in arms(found):
        told = figures_of(found, arm)
        rows.append(
            (
                {"with": "trained with the losses", "without": "trained without them"}.get(
                    arm, "before"
                ),
                *(told["accuracy"][key] for key in ("value", "low", "high")),
                *(told["loss"][key] for key in ("value", "low", "high")),
            )
        )
    columns = ("model", "accuracy", "low", "high", "loss, nats", "low ", "high ")
    made = [table(Numbers(columns, tuple(rows), "task"), names)]
    gains = tuple(
        (n, *(seed["gain"][name][key] for name in ("accuracy", "loss")
              for key in ("value", "low", "high")))
        for n, seed in enumerate(found["seeds"])
    )  # fmt: skip
    columns = ("seed", "accuracy gained", "low", "high", "loss gained, nats", "low ", "high ")
    made.append(tabled(Numbers(columns, gains, "gains"), names, "With less without, by seed"))
    lead = f"{found['answers']:,} answers on examples that trained nothing. Both arms saw the same "
    lead += "rows in the same order. Intervals: 95 %, groups of examples drawn anew."
    return Section("task", "The task", made, lead)


def _terms(found: dict[str, Any], names: ElementIds) -> Section | None:
    rows = tuple(
        (shown(one["term"], 80), one["before"], one["without"], one["with"])
        for one in found["terms"]
    )
    columns = ("loss", "before", "trained without it", "trained with it")
    parts = [table(Numbers(columns, rows, "terms"), names)] if rows else []
    lead = "Values on all held-out rows together; lower is what the loss asks for. A loss that "
    lead += "fell worked; whether it helped is told by the task."
    if found["conflict"]:
        told = ", ".join(number(x, 2) for x in found["conflict"])
        lead += f" Cosine of the gradients of task and losses at the start of each epoch: {told} "
        lead += "(below 0 they pull apart)."
    return Section("losses", "The losses", parts, lead) if parts else None


def _curves(found: dict[str, Any], names: ElementIds) -> Section:
    wanted = ["task", *(name for name in found["curves"]["with"][0] if name.endswith(")"))]
    parts = [_curve(found, name, names, n) for n, name in enumerate(wanted)]
    return Section("curves", "Over the training", parts, "Values on the batch of each step.")


def _curve(found: dict[str, Any], name: str, names: ElementIds, n: int) -> Any:
    what = "The loss of the task, nats" if name == "task" else f"{shown(name, 60)}"
    rows = [
        {"step": row["step"], "value": row[name], "arm": arm}
        for arm, curve in found["curves"].items()
        for row in curve
        if name in row
    ]
    last = rows[-1]["value"]
    message = f"{what}: {number(rows[0]['value'])} at the start, {number(last)} at the end"

    def draw(width: int) -> Chart:
        return curves(message, rows, "step", "value", by="arm", dots=False)

    table_rows = tuple((row["arm"], row["step"], row["value"]) for row in rows)
    numbers = Numbers(("arm", "step", "value"), table_rows, f"curve-{n}")
    return figure(Picture(f"curve-{n}", message, draw, numbers), names)


def _inside(found: dict[str, Any], names: ElementIds) -> Section | None:
    rows = [
        {"site": one["site"], "cka": one["cka"], "arm": arm, "n": one["n"], "error": one["error"]}
        for arm, sites in found["sites"].items()
        for one in sites
    ]
    if not rows:
        return None
    worst = min(rows, key=lambda row: row["cka"] if row["cka"] is not None else 2)
    message = (
        f"States moved most at {shown(worst['site'], 60)} {worst['arm']} the losses: CKA with "
    )
    message += f"those before {number(worst['cka'])}"

    def draw(width: int) -> Chart:
        axis = Axis.of(list(dict.fromkeys(row["site"] for row in rows)), 48 if width > 400 else 24)
        shown_rows = [
            {"s": axis.names[row["site"]], "cka": row["cka"], "arm": row["arm"],
             "tip": tip(row["site"], f"CKA {number(row['cka'])}")}
            for row in rows if row["site"] in axis.names
        ]  # fmt: skip
        return curves(message, shown_rows, axis.across(), ChartAxis("cka"), by="arm")

    columns = ("site", "arm", "rows", "error", "CKA")
    cells = tuple((r["site"], r["arm"], r["n"], r["error"], r["cka"]) for r in rows)
    picture = Picture("inside", message, draw, Numbers(columns, cells, "inside"))
    lead = "Each arm's states beside those before the training, on held-out examples. Error: "
    lead += "squared difference over squared length."
    return Section("inside", "Inside", [figure(picture, names)], lead)


def _undo(found: dict[str, Any]) -> Section:
    lead = "The original tensors lie in a folder beside the new model."
    return Section("undo", "Take it back", [command(found["undo"])], lead)
