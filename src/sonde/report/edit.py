"""What a change of a model did, as one page."""

from pathlib import Path
from typing import Any

from sonde.core.chart import Chart, ChartAxis, marks
from sonde.report._fit import tip
from sonde.report._format import number, plural, shown
from sonde.report._markup import ElementIds, Markup, code, el
from sonde.report._parts import command, figure, table, tabled
from sonde.report._picture import Numbers, Picture
from sonde.report.document import Head, Section, document_page, save_document
from sonde.report.edit_terminal import edit_verdict, four_numbers


def edit_to_html(found: dict[str, Any]) -> str:
    """Return an act as one self-contained page.

    Parameters
    ----------
    found : dict
        JSON of an act, ``sonde-edit/1``.
    """
    names = ElementIds()
    parts = [_numbers(found, names), _tables(found, names), _samples(found), _undo(found)]
    return document_page(found, _head(found), parts)


def save_edit(found: dict[str, Any], path: str | Path) -> Path:
    """Write an act as a page (``.html``) or as JSON, by the name's ending."""
    return save_document(found, path, edit_to_html, "save_edit")


def _head(found: dict[str, Any]) -> Head:
    judged = found["judgement"]
    places = found["places"]
    more = f" and {len(places) - 4} more" if len(places) > 4 else ""
    facts = [
        ("model", shown(found["model"], 120)),
        ("method", shown(found["method"], 200)),
        ("changed", ", ".join(shown(p, 60) for p in places[:4]) + more),
        ("neutral data", shown(found["neutral"], 120)),
        ("written to", shown(found["output"], 200) if found["output"] else None),
    ]
    if judged is None:
        mark = ("clear", "read only")
    elif judged["too_large"]:
        mark = ("error", "too large")
    elif judged["beyond_control"] is None:
        mark = ("withheld", "no control")
    else:
        is_clear = not judged["no_effect"]
        mark = ("clear", "an effect") if is_clear else ("warning", "as chance")
    notes = list(found["notes"])
    if judged is not None and judged["too_large"]:
        notes.insert(0, f"Too large: {judged['too_large']}.")
    word = shown(found["word"], 40)
    return Head(
        "edit",
        f"What sonde edit {word} did",
        edit_verdict(found),
        facts,
        subject=f"{word} {shown(found['model'], 80)}",
        badge=mark,
        notes=notes,
    )


def _numbers(found: dict[str, Any], names: ElementIds) -> Section | None:
    if found["judgement"] is None:
        return None
    rows = tuple(
        (name.strip() or "damage", value, said) for name, value, said in four_numbers(found)
    )
    numbers = Numbers(("number", "value", "meaning"), rows, "four-numbers")
    parts = [table(numbers, names)]
    if found["judgement"]["control"]["n"]:
        parts.insert(0, figure(_control_picture(found), names))
    lead = "Effect: how far the target moves. Control: what random changes of the same size do to "
    lead += "it. Damage: what the change does to data that it should leave alone. Size: how far "
    lead += "states move, in the spread that they have by themselves."
    return Section("numbers", "Four numbers", parts, lead)


def _control_picture(found: dict[str, Any]) -> Picture:
    judged = found["judgement"]
    effect, effects = judged["effect"]["value"], judged["control"]["effects"]
    rows = [
        {"x": e, "y": "random", "tip": tip("a random change", f"{number(e)} nats")} for e in effects
    ]
    mine = [{"x": effect, "y": "this change", "tip": tip("this change", f"{number(effect)} nats")}]

    message = edit_verdict(found)

    def draw(width: int) -> Chart:
        x = ChartAxis("x", title="effect in nats", zero=True)
        y = ChartAxis("y", title="", names=["this change", "random"])
        colors = {"this change": "var(--c2)", "random": "var(--c1)"}
        made = marks(message, mine + rows, x, y, by="y", colors=colors, opacity=0.7)
        return made | {"height": 90}

    table_rows = (("this change", effect), *((f"random {i}", e) for i, e in enumerate(effects)))
    numbers = Numbers(("change", "effect in nats"), table_rows, "control")
    return Picture("control", message, draw, numbers)


def _tables(found: dict[str, Any], names: ElementIds) -> Section | None:
    parts: list[Markup] = []
    for i, one in enumerate(found["tables"]):
        numbers = Numbers(tuple(one["columns"]), tuple(map(tuple, one["rows"])), f"table-{i}")
        parts += [el("p", one["title"]), tabled(numbers, names, opened=len(one["rows"]) <= 20)]
    return Section("more", "What the method found", parts) if parts else None


def _samples(found: dict[str, Any]) -> Section | None:
    made = [
        el(
            "dl",
            *(
                el("div", el("dt", key), el("dd", code(shown(text, 2000))))
                for key, text in s.items()
            ),
        )
        for s in found["samples"]
    ]
    lead = f"{plural(len(made), 'input')}, answered by the model as it was and as it is now."
    return Section("samples", "Before and after", made, lead) if made else None


def _undo(found: dict[str, Any]) -> Section | None:
    if found["undo"] is None:
        return None
    lead = (
        "The bytes that were overwritten lie in a folder beside the new model; every file of the "
    )
    lead += "old one comes back with the same hash."
    return Section("undo", "Take it back", [command(found["undo"])], lead)
