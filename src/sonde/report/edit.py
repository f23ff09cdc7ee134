"""The document of a change to a model."""

from typing import Any

from sonde.core.chart import Chart, ChartAxis, marks
from sonde.report._fit import tip
from sonde.report._format import number, plural, shown
from sonde.report._markup import code, el
from sonde.report._picture import Numbers, Picture
from sonde.report.document import (
    Command,
    Document,
    Drawing,
    Figure,
    Part,
    Section,
    Table,
)

LONG_TABLE = 20


def document(found: dict[str, Any]) -> Document:
    """Return an edit as a document: its effect, random changes of equal size, and the undo.

    Parameters
    ----------
    found : dict
        JSON of an act, ``sonde-edit/1``.
    """
    judged, places = found["judgement"], found["places"]
    more = f" and {len(places) - 4} more" if len(places) > 4 else ""
    facts = [
        ("model", shown(found["model"], 120)),
        ("method", shown(found["method"], 200)),
        ("changed", ", ".join(shown(p, 60) for p in places[:4]) + more),
        ("neutral data", shown(found["neutral"], 120)),
        ("written to", shown(found["output"], 200) if found["output"] else None),
    ]
    notes = list(found["notes"])
    if judged is not None and judged["too_large"]:
        notes.insert(0, f"too large: {judged['too_large']}.")
    word = shown(found["word"], 40)
    return Document(
        "edit",
        f"Result of sonde edit {word}",
        edit_verdict(found),
        facts,
        [_language(found), _numbers(found), _tables(found), _samples(found), _undo(found)],
        subject=f"{word} {shown(found['model'], 80)}",
        badge=_mark(judged, found.get("language")),
        notes=notes if judged is not None else notes[1:],
    )


def _language(found: dict[str, Any]) -> Section | None:
    """Return the section on the eight figures of a language model."""
    language = found.get("language")
    if language is None:
        return None
    rows = tuple(map(tuple, language["lines"]))
    columns = ("figure", "score", "before", "after", "meaning")
    lead = f"Scores from 0 to 1; 1 is best. {language['verdict']}"
    return Section("language", "Eight figures", [Table(Numbers(columns, rows, "eight"))], lead)


def edit_verdict(found: dict[str, Any]) -> str:
    """Return a sentence on the effect of a change, compared with random changes."""
    judged, language = found["judgement"], found.get("language")
    if language is not None and (judged is None or language["is_poor"]):
        return shown(language["verdict"], 240)
    if judged is None:
        return shown(found["notes"][0], 400) if found["notes"] else "nothing was changed"
    effect = f"{found['target']}: {_signed(judged['effect']['value'])} nats"
    control, beyond = judged["control"], judged["beyond_control"]
    if not control["n"]:
        return shown(effect, 200)
    alike = f"random changes of this size give {_signed(control['mean'])} ± "
    alike += number(control["sd"])
    if judged["no_effect"]:
        words = "not significantly larger than with random changes"
    elif beyond is None:
        words = "not compared with random changes"
    else:
        words = "significantly larger than with random changes"
    return shown(f"{effect}, {words} ({alike})", 240)


def _mark(judged: dict[str, Any] | None, language: dict[str, Any] | None) -> tuple[str, str]:
    if language is not None and language["is_poor"]:
        return "warning", f"poor {language['worst']}"
    if judged is None:
        return "clear", "read only"
    if judged["too_large"]:
        return "error", "too large"
    if judged["beyond_control"] is None:
        return "withheld", "no control"
    return ("warning", "as chance") if judged["no_effect"] else ("clear", "an effect")


def _numbers(found: dict[str, Any]) -> Section | None:
    judged = found["judgement"]
    if judged is None:
        return None
    control, neutral = judged["control"], found["neutral"] or "neutral data"
    rows = [("effect", _with_error(judged["effect"]), f"nats, {found['target']}")]
    if len(judged["by_side"]) > 1:
        rows += [(k, _with_error(d), "log-probability") for k, d in judged["by_side"].items()]
    if control["n"]:
        figure = f"{_signed(control['mean'])} ± {number(control['sd'])}"
        rows.append(("control", figure, f"{plural(control['n'], 'random change')} of this size"))
    rows += [
        ("damage", _with_error(judged["loss"]), f"nats of cross-entropy on {neutral}"),
        ("damage", _with_error(judged["kl"]), "nats of divergence there"),
    ]
    if judged["size"] is not None:
        rows.append(("size", number(judged["size"]), "of the states' standard deviation"))
    parts: list[Part] = [Table(Numbers(("number", "value", "meaning"), tuple(rows), "four"))]
    if control["n"]:
        parts.insert(0, Figure(_control_picture(found)))
    lead = "Effect: change of the target. Control: effect of random changes of the same size on "
    lead += "the target. Damage: effect on data that should not change. Size: root "
    lead += "mean square length of the states' changes, divided by the root mean square of the "
    lead += "standard deviations of the unedited states along these changes."
    return Section("numbers", "Four numbers", parts, lead)


def _control_picture(found: dict[str, Any]) -> Picture:
    judged = found["judgement"]
    effect, effects = judged["effect"]["value"], judged["control"]["effects"]
    rows = [
        {"x": e, "y": "random", "tip": tip("a random change", f"{number(e)} nats")} for e in effects
    ]
    own = [{"x": effect, "y": "this change", "tip": tip("this change", f"{number(effect)} nats")}]
    message = edit_verdict(found)

    def draw(width: int) -> Chart:
        x = ChartAxis("x", title="effect in nats", zero=True)
        y = ChartAxis("y", title="", names=["this change", "random"])
        colors = {"this change": "var(--c2)", "random": "var(--c1)"}
        chart = marks(message, own + rows, x, y, by="y", colors=colors, opacity=0.7)
        return chart | {"height": 90}

    table_rows = (("this change", effect), *((f"random {i}", e) for i, e in enumerate(effects)))
    numbers = Numbers(("change", "effect in nats"), table_rows, "control")
    return Picture("control", message, draw, numbers)


def _tables(found: dict[str, Any]) -> Section | None:
    parts = [
        Table(
            Numbers(tuple(one["columns"]), tuple(map(tuple, one["rows"])), f"table-{i}"),
            one["title"],
            folded=len(one["rows"]) > LONG_TABLE,
        )
        for i, one in enumerate(found["tables"])
    ]
    return Section("more", "Results of the method", parts) if parts else None


def _samples(found: dict[str, Any]) -> Section | None:
    parts: list[Part] = []
    for sample in found["samples"]:
        pairs = (el("div", el("dt", k), el("dd", code(shown(v, 2000)))) for k, v in sample.items())
        lines = [f"{key}: {shown(text, 200)}" for key, text in sample.items()]
        parts.append(Drawing(el("dl", *pairs), lines))
    lead = f"{plural(len(parts), 'input')}, answered by the model before and after the edit."
    return Section("samples", "Before and after", parts, lead) if parts else None


def _undo(found: dict[str, Any]) -> Section | None:
    if found["undo"] is None:
        return None
    lead = "The overwritten bytes are kept in a folder beside the new model; every file of "
    lead += "the old model can be restored with the same hash."
    return Section("undo", "Undo the edit", [Command(found["undo"])], lead)


def _with_error(figure: dict[str, Any]) -> str:
    error = "" if figure["se"] is None else f" ± {number(figure['se'], 2)}"
    return f"{_signed(figure['value'])}{error}"


def _signed(value: float | None) -> str:
    return f"{'+' if value is not None and value > 0 else ''}{number(value)}"
