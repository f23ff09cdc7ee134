"""What a change of a model did, as text for a terminal of 80 columns."""

from textwrap import wrap
from typing import Any

from sonde.report._format import number, plural, shown

COLUMNS = 80
MOST_ROWS = 16


def edit_verdict(found: dict[str, Any]) -> str:
    """Return a sentence about what a change did, compared with random changes.

    Parameters
    ----------
    found : dict
        JSON of an act, ``sonde-edit/1``.
    """
    judged = found["judgement"]
    if judged is None:
        return shown(found["notes"][0], 200) if found["notes"] else "nothing was changed"
    effect = f"{found['target']}: {_signed(judged['effect']['value'])} nats"
    control, beyond = judged["control"], judged["beyond_control"]
    if not control["n"]:
        return shown(effect, 200)
    alike = f"random changes of this size give {_signed(control['mean'])} ± "
    alike += number(control["sd"])
    if judged["no_effect"]:
        said = "no more than chance gives"
    elif beyond is None:
        said = "whether that is more than chance is not known"
    else:
        said = "far beyond chance"
    return shown(f"{effect}, {said} ({alike})", 240)


def edit_to_text(found: dict[str, Any]) -> str:
    """Return the verdict, the four numbers, further tables and how to take the change back."""
    lines = [*wrap(edit_verdict(found), COLUMNS), ""]
    judged = found["judgement"]
    if judged is not None:
        lines += [_row(name, *cells) for name, *cells in four_numbers(found)]
    for table in found["tables"]:
        lines += ["", *wrap(table["title"], COLUMNS), *_table(table)]
    lines += [line for note in found["notes"] for line in ("", *wrap(note, COLUMNS))]
    if judged is not None and judged["too_large"]:
        lines += ["", *wrap(f"too large: {judged['too_large']}", COLUMNS)]
    for sample in found["samples"]:
        lines += ["", *(f"{key:<7} {shown(sample[key], 200)}" for key in sample)]
    if found["output"] is not None:
        lines += ["", f"written  {found['output']}", f"undo     {found['undo']}"]
    return "\n".join(lines)


def four_numbers(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return name, figure and meaning of each number of a judgement."""
    judged = found["judgement"]
    control = judged["control"]
    rows = [("effect", _with_error(judged["effect"]), f"nats, {found['target']}")]
    if len(judged["by_side"]) > 1:
        rows += [
            (f"  {k}", _with_error(d), "log-probability") for k, d in judged["by_side"].items()
        ]
    if control["n"]:
        figure = f"{_signed(control['mean'])} ± {number(control['sd'])}"
        rows.append(("control", figure, f"{plural(control['n'], 'random change')} of this size"))
    neutral = found["neutral"] or "neutral data"
    rows += [
        ("damage", _with_error(judged["loss"]), f"nats of cross-entropy on {neutral}"),
        ("", _with_error(judged["kl"]), "nats of divergence there"),
    ]
    if judged["size"] is not None:
        rows.append(("size", number(judged["size"]), "of the states' own spread"))
    return rows


def _with_error(figure: dict[str, Any]) -> str:
    error = "" if figure["se"] is None else f" ± {number(figure['se'], 2)}"
    return f"{_signed(figure['value'])}{error}"


def _signed(value: float | None) -> str:
    return f"{'+' if value is not None and value > 0 else ''}{number(value)}"


def _row(name: str, figure: str, meaning: str) -> str:
    return f"{shown(name, 12):<12} {figure:<20} {shown(meaning, 46)}"


def _table(table: dict[str, Any]) -> list[str]:
    cells = [table["columns"], *([_cell(c) for c in row] for row in table["rows"][:MOST_ROWS])]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table["columns"]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    left = len(table["rows"]) - MOST_ROWS
    return [*lines, f"and {plural(left, 'more row')}"] if left > 0 else lines


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, int | float) or value is None else shown(value, 40)
