"""Sentences about the model's accuracy, and the values to compare it with."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from sonde.findings.catalogue import codes_of
from sonde.report._format import number, plural, share, shown

MOST_PAIRS: Final = 3
MOST_WORST: Final = 10


def answers_sentence(report: dict[str, Any]) -> str:
    """Return a sentence about the model's accuracy, or why it is not known; else "".

    Examples
    --------
    >>> site = {"site": "blocks.3:out", "value": 0.97, "se": 0.01}
    >>> found = {"measure": "accuracy", "value": 0.95, "low": 0.93, "high": 0.97, "chance": 0.1}
    >>> found |= {"commonest": 0.12, "last": site, "best": site, "per_byte": None, "n_rows": 597}
    >>> answers_sentence({"answers": found})
    'correct on 95 % of 597 rows (93 to 97 %); a linear probe on the last layer: 97 %, the commonest label alone: 12 %, chance: 10 %'
    """  # noqa: E501
    answers = report.get("answers")
    if answers is None:
        return _unknown(report)
    heads = answers.get("heads") or []
    name = f"{_head_name(heads[0])}: " if len(heads) > 1 else ""
    if answers["last"] is None and heads:
        return name + head_sentence(heads[0])
    data = report.get("provenance", {}).get("data", {})
    of_tokens = partial(_of_tokens, grouped=data.get("group_column") is not None)
    say = {"accuracy": _of_classes, "nats_per_token": of_tokens, "rms_error": _of_numbers}
    return name + say[answers["measure"]](answers)


def not_judged(report: dict[str, Any]) -> str:
    """Return why the answers were not judged, or "" if they were judged or not requested."""
    codes = codes_of("answers")
    reasons = [c["reason"] for c in report["checks"] if c["code"] in codes]
    return reasons[0] or "" if reasons and report.get("answers") is None else ""


def head_lines(report: dict[str, Any]) -> list[str]:
    """Return a line for each further head of a model, or for a head's worst labels."""
    heads = (report.get("answers") or {}).get("heads") or []
    if len(heads) > 1:
        return [f"{_head_name(h)}: {head_sentence(h)}" for h in heads[1:]]
    return [_parts(h) for h in heads if h["parts"]]


def _head_name(head: dict[str, Any]) -> str:
    """Return the name of a head's label column, and of its output if that differs."""
    column, name = shown(head["column"], 40), shown(head["name"], 40)
    return column if name in ("", column) else f"{column} (output {name})"


def head_sentence(head: dict[str, Any]) -> str:
    """Return a sentence about the accuracy of a head.

    Examples
    --------
    >>> head = {"measure": "label_accuracy", "value": 0.93, "low": 0.92, "high": 0.94, "n_rows": 90}
    >>> head_sentence(head | {"commonest": 0.6, "all_right": 0.81})
    'correct on 93 % of labels (92 to 94 %), on all labels of 81 % of 90 rows; the commonest answers alone: 60 %'
    """  # noqa: E501
    rows = plural(head["n_rows"], "row")
    if head["measure"] == "rms_error":
        explained = 1 - (head["value"] / head["commonest"]) ** 2 if head["commonest"] else 0.0
        return (
            f"R^2 {number(explained)}, off by {number(head['value'])} ({number(head['low'])} to "
            f"{number(head['high'])}; root mean square) on {rows}; the mean alone: "
            f"{number(head['commonest'])}"
        )
    ends = f"{share(head['value'])} of {{}} ({number(100 * head['low'])} to {share(head['high'])})"
    usual = share(head["commonest"])
    if head["measure"] == "label_accuracy":
        return (
            f"correct on {ends.format('labels')}, on all labels of {share(head['all_right'])} of "
            f"{rows}; the commonest answers alone: {usual}"
        )
    if head["measure"] == "pixel_accuracy":
        return (
            f"correct on {ends.format('pixels')} of {rows}, mean intersection over union "
            f"{number(head['mean_overlap'])}; the commonest class alone: {usual}"
        )
    off = f", off by {number(head['ranks_off'])} ranks on average" if head["ranks_off"] else ""
    return f"correct on {ends.format(rows)}{off}; the commonest label alone: {usual}"


def _parts(head: dict[str, Any]) -> str:
    """Return a head's worst labels, classes or numbers."""
    if head["measure"] == "rms_error":
        worst = sorted(head["parts"], key=lambda p: -p["value"] / (p["commonest"] or math.inf))
        words = [f"{p['name']} off by {number(p['value'])} (mean alone "
                f"{number(p['commonest'])})" for p in worst]  # fmt: skip
        return f"worst: {', '.join(words[:MOST_PAIRS])}"
    if head["measure"] == "pixel_accuracy":
        worst = sorted(head["parts"], key=lambda p: p["value"])
        words = [f"class {p['name']} {number(p['value'])}" for p in worst]
        return f"least intersection over union: {', '.join(words[:MOST_PAIRS])}"
    worst = sorted(head["parts"], key=lambda p: p["value"] - p["commonest"])
    words = [f"label {p['name']} {share(p['value'])} (commonest alone {share(p['commonest'])})"
            for p in worst]  # fmt: skip
    return f"smallest gain over always giving the commonest answer: {', '.join(words[:MOST_PAIRS])}"


def confused_sentence(report: dict[str, Any]) -> str:
    """Return a sentence about the most confused classes, or "" if no confusion is known.

    Examples
    --------
    >>> pair = {"label": "cat", "predicted": "dog", "n": 12, "share": 0.24}
    >>> confused_sentence({"answers": {"confusion": {"pairs": [pair]}}})
    'most often wrong: cat answered as dog (12 rows, 24 % of cat)'
    """
    table = (report.get("answers") or {}).get("confusion")
    pairs = [_confused(pair) for pair in table["pairs"][:MOST_PAIRS]] if table else []
    return f"most often wrong: {', '.join(pairs)}" if pairs else ""


def worst_lines(report: dict[str, Any]) -> list[str]:
    """Return the worst wrong inputs, one line each: place, label, answer, confidence.

    Examples
    --------
    >>> row = {"id": "b", "places": ["data.csv, line 8"], "truth": "cat", "answer": "dog"}
    >>> row |= {"confidence": 0.993, "loss": 5.1, "right": False}
    >>> worst_lines({"rows": {"answers": [row]}})
    ['data.csv, line 8: is cat, called dog (99.3 % sure)']
    """
    of_map = (report.get("answers") or {}).get("measure") == "pixel_accuracy"
    say = _pixels if of_map else answer_words
    return [f"{place_of(row)}: {say(row)}" for row in worst_of(report)[:MOST_WORST]]


def _pixels(row: dict[str, Any]) -> str:
    return f"{share(row['loss'])} of its pixels wrong"


def worst_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the wrong rows, worst first; all rows if correctness is not known."""
    rows = (report.get("rows") or {}).get("answers") or []
    if any(row["right"] is not None for row in rows):
        rows = [row for row in rows if row["right"] is False]
    return [row for row in rows if row["loss"] not in (0, None)]


def suspects_sentence(report: dict[str, Any]) -> str:
    """Return a sentence on labels to check first and the list's reliability; or "".

    Examples
    --------
    >>> row = {"id": "b", "places": ["line 8"], "label": "cat", "predicted": "dog", "share": 0.9}
    >>> found = {"rows": [row], "n": 1, "planted": 20, "found": 18}
    >>> suspects_sentence({"rows": {"suspects": found}})
    'look first at line 8 (cat, looks like dog); of 20 labels exchanged as a test, 18 were among the first 21 rows of this list'
    """  # noqa: E501
    suspects = (report.get("rows") or {}).get("suspects")
    if not suspects or not suspects["rows"]:
        return ""
    rows = [
        f"{place_of(row)} ({shown(row['label'], 20)}, looks like {shown(row['predicted'], 20)})"
        for row in suspects["rows"][:MOST_PAIRS]
    ]
    parts = filter(None, (wrong_sentence(suspects), planted_sentence(suspects)))
    sentences = [f"{text[:1].lower()}{text[1:-1]}" for text in parts]
    return "; ".join([f"look first at {', '.join(rows)}", *sentences])


def wrong_sentence(found: dict[str, Any]) -> str:
    """Return how many labels are wrong, with the interval; "" for reports of earlier versions.

    Examples
    --------
    >>> wrong = {"number": 101.7, "low": 78.2, "high": 131.9, "precision": 0.66, "n_rows": 2000}
    >>> wrong_sentence({"wrong": wrong})
    'An estimated 102 of 2,000 labels are wrong (95 % interval 78 to 132); of the first 102 rows of this list, 67 are expected to be.'
    """  # noqa: E501
    wrong = found.get("wrong")
    if wrong is None:
        return ""
    number, low, high = (round(wrong[key]) for key in ("number", "low", "high"))
    expected = round(wrong["precision"] * number)
    more = f"; of the first {number} rows of this list, {expected} are expected to be"
    return (
        f"An estimated {number} of {wrong['n_rows']:,} labels are wrong (95 % interval {low} to "
        f"{high}){more if number > 1 else ''}."
    )


def planted_sentence(found: dict[str, Any]) -> str:
    """Return how many planted wrong labels the list found, or "" if none were planted."""
    if not found["planted"]:
        return ""
    n, first = found["planted"], found["planted"] + found["n"]
    return (
        f"Of {plural(n, 'label')} exchanged as a test, {found['found']} were among the first "
        f"{first} "
        "rows of this list."
    )


def place_of(row: dict[str, Any]) -> str:
    """Return the place of an input, or its id if the place is not known."""
    return shown(next(iter(row.get("places") or []), row["id"]), 80)


def answer_words(row: dict[str, Any]) -> str:
    """Return an input's label and the model's answer."""
    if row["answer"] is None:
        return "not judged" if row.get("loss") is None else f"loss {number(row['loss'])}"
    truth, answer = (_value(row[side]) for side in ("truth", "answer"))
    sure = "" if row["confidence"] is None else f" ({share(row['confidence'])} sure)"
    verb = row.get("verb") or ("called" if isinstance(row["answer"], str) else "answered")
    return (
        f"{verb} {answer}{sure}" if row["truth"] is None else f"is {truth}, {verb} {answer}{sure}"
    )


def _value(value: Any) -> str:
    return shown(value, 40) if isinstance(value, str) else number(value)


def _confused(pair: dict[str, Any]) -> str:
    label, answer = (shown(pair[side], 40) for side in ("label", "predicted"))
    rows = f"{plural(pair['n'], 'row')}, {share(pair['share'])} of {label}"
    return f"{label} answered as {answer} ({rows})"


def _of_classes(found: dict[str, Any]) -> str:
    rest = [f"the commonest label alone: {share(found['commonest'])}"]
    if found["chance"] is not None:
        rest.append(f"chance: {share(found['chance'])}")
    last, best = found["last"], found["best"]
    if last is not None:
        probe = f"a linear probe on the last layer: {share(last['value'])}"
        if best["site"] != last["site"]:
            probe += f", on the best, {_name(best)}: {share(best['value'])}"
        if "n_probed" in found:
            probe += f" ({found['n_probed']:,} of the rows)"
        rest.insert(0, probe)
    rest = [*_reference(found, share), *rest]
    rows = plural(found["n_rows"], "row")
    if bad := found.get("n_nonfinite", 0):
        rows += f", {bad:,} of them with NaN or infinity in the answer"
    ends = f"{number(100 * found['low'])} to {share(found['high'])}"
    return f"correct on {share(found['value'])} of {rows} ({ends}){_sureness(found)}; " + ", ".join(
        rest
    )


def _reference(found: dict[str, Any], say: Callable[[float], str]) -> list[str]:
    """Return the healthy answers that the user gave, in words; none without a reference."""
    reference = found.get("reference")
    if reference is None:
        return []
    return [f"the reference {shown(reference['name'], 40)}: {say(reference['value'])}"]


def _sureness(found: dict[str, Any]) -> str:
    """Return the model's confidence and the temperature that corrects it, or "" if not known."""
    off = found.get("sureness")
    if off is None:
        return ""
    return (
        f", {share(off['sure'])} sure on average (expected calibration error "
        f"{share(off['error'])}; {share(off['mended'])} at temperature "
        f"{number(off['temperature'])})"
    )


def _of_numbers(found: dict[str, Any]) -> str:
    last, best = found["last"], found["best"]
    probe = f"a linear probe on the last layer: {number(last['value'])}"
    if best["site"] != last["site"]:
        probe += f", on the best, {_name(best)}: {number(best['value'])}"
    probe = ", ".join([*_reference(found, number), probe])
    explained = 1 - (found["value"] / found["commonest"]) ** 2 if found["commonest"] else 0.0
    return (
        f"R^2 {number(explained)}, off by {number(found['value'])} ({number(found['low'])} to "
        f"{number(found['high'])}; root mean square) on {plural(found['n_rows'], 'row')}; {probe}, "
        f"the mean alone: {number(found['commonest'])}"
    )


def _of_tokens(found: dict[str, Any], grouped: bool = False) -> str:
    value = f"loss of {number(found['value'])} nats per token"
    if found["low"] is not None:
        value += f" ({number(found['low'])} to {number(found['high'])})"
    if found["per_byte"] is not None:
        value += f", {number(found['per_byte'])} per byte"
    rest = [f"the tokens' frequencies alone: {number(found['commonest'])}"]
    rest.append(f"chance: {number(found['chance'])}")
    best = found["best"]
    if best is not None and best["site"] != found["last"]["site"]:
        rest.insert(0, f"after its best block, {_name(best)}: {number(best['value'])}")
    where = plural(found["n_rows"], "token")
    if "n_first" in found:  # with little before them these cost more than a whole text does
        kind, of = ("group", "each text, from") if grouped else ("text", "each of")
        where += (
            f", the first {found['n_first']} or fewer of {of} {plural(found['n_groups'], kind)}"
        )
    return f"{value}, {where}; " + ", ".join(rest)


def _unknown(report: dict[str, Any]) -> str:
    reason = not_judged(report)
    return f"not judged: {reason}" if reason else ""


def _name(site: dict[str, Any]) -> str:
    return shown(site["site"].removesuffix(":out"), 60)
