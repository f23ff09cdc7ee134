"""Top of a report: accuracy, cause, fix, and the worst inputs."""

import math
from typing import Any, Final

from sonde.findings.catalogue import breaks
from sonde.report._answers_words import confused_sentence, place_of, worst_of
from sonde.report._format import number, plural, share, shown, tied
from sonde.report._markup import Markup, code, el, join
from sonde.report._parts import PICTURE, badge, command
from sonde.report._select import select

NO_CAUSE: Final = "no cause found: none of the changes that were tried corrects the answers"
NOT_TRIED: Final = "no cause was searched for, since it is not known which answers are correct"
RIGHT, RIGHT_ERROR, NEAR = 0.95, 0.25, 0.02
"""Accuracy from which, and error over the mean's up to which, a model is right; and how far its
accuracy may lie below the best probe's."""
CLOSED: Final = 0.9
"""Fraction of a gap from which nothing is said of the rest."""
SHOWN: Final = 6
_WIDE: Final = 420


def first_finding(report: dict[str, Any]) -> dict[str, Any] | None:
    """Return the first finding: the cause, else an error or warning, about all answers first.

    If the model guesses, a flaw of its data is no explanation. Then the first finding is one that
    brings all answers down, else weights that look untrained, else the guesses themselves; the last
    two also as notes.

    Examples
    --------
    >>> usual = {"effect": 0.5, "because_of": None, "ignored": False, "theme": "run"}
    >>> found = [usual | {"code": c, "level": "warning"} for c in ("SND002", "SND015")]
    >>> first_finding({"findings": found})["code"]
    'SND015'
    >>> found = [usual | {"code": "SND035", "level": "warning"},
    ...          usual | {"code": "SND039", "level": "note"}]
    >>> first_finding({"findings": found})["code"]
    'SND039'
    >>> found = [usual | {"code": c, "level": "warning"} for c in ("SND022", "SND069", "SND082")]
    >>> first_finding({"findings": found})["code"]
    'SND082'
    """
    chosen = select(report["findings"])
    every = [*chosen.first, *chosen.more]
    tried = next((f for f in every if is_cause(report, f) or is_part(report, f)), None)
    if tried is not None:
        return tried
    serious = [f for f in every if f["level"] != "note"]
    errors = [f for f in serious if f["level"] == "error"] or serious
    if any(breaks(f["code"]) == "guesses" and not f["ignored"] for f in report["findings"]):
        why = [f for f in errors if breaks(f["code"]) == "all answers"]
        for suspicion in ("perhaps all answers", "guesses"):
            why += [f for f in every if breaks(f["code"]) == suspicion]
        return next(iter(why or errors), None)
    some = [f for f in errors if _is_about_answers(f)]
    every = [f for f in some if breaks(f["code"]) == "all answers"]
    return next(iter(every or some or errors), None)


def _is_about_answers(finding: dict[str, Any]) -> bool:
    return breaks(finding["code"]) != "nothing"


def is_cause(report: dict[str, Any], finding: dict[str, Any]) -> bool:
    """Return whether the change behind this finding corrected the most in its trial."""
    return report.get("cause") == finding["code"]


def is_part(report: dict[str, Any], finding: dict[str, Any]) -> bool:
    """Return whether the change behind this finding is the largest known part of the cause."""
    return report.get("part_of_cause") == finding["code"]


def fix_word(finding: dict[str, Any]) -> str:
    """Return the label of a finding's advice: "fix" only if it was tried and helped."""
    return "fix" if finding.get("trial") else "advice"


def cause_lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines on the first finding with labels; only a tried finding is a cause."""
    finding = first_finding(report)
    if finding is None:
        answers, confused = report.get("answers"), confused_sentence(report)
        if answers is not None and answers["measure"] == "rms_error":
            return [("cause", "no check found a cause of errors of this size")]
        return [("cause", f"no check found a cause; {confused}")] if confused else []
    words = f"{finding['code']}: {shown(finding['sentence'], 1000)}"
    advice = shown(finding.get("fix") or "", 1000)
    if is_cause(report, finding):
        return [("cause", words), (fix_word(finding), advice), *_rest(finding)]
    if is_part(report, finding):
        return [("part", f"of the cause: {words}"), (fix_word(finding), advice), *_rest(finding)]
    is_asked = _is_about_answers(finding) and not is_right(report)
    none = [("cause", _without_cause(report))] if is_asked else []
    return [*none, ("seen", words), ("advice", advice)]


def is_right(report: dict[str, Any]) -> bool:
    """Return whether hardly any answer is wrong, so that there is no cause to look for.

    Examples
    --------
    >>> answers = {"measure": "accuracy", "value": 0.99, "commonest": 0.5, "best": {"value": 0.98}}
    >>> is_right({"answers": answers}), is_right({"answers": answers | {"value": 0.9}})
    (True, False)
    """
    answers = report.get("answers")
    if answers is None or answers["measure"] == "nats_per_token":
        return False
    best = answers.get("best")
    if answers["measure"] == "rms_error":
        least = min(answers["commonest"], best["value"] if best else math.inf)
        return answers["value"] <= min(RIGHT_ERROR * answers["commonest"], least)
    return answers["value"] >= max(RIGHT, best["value"] - NEAR if best else 0.0)


def _without_cause(report: dict[str, Any]) -> str:
    """Return why no cause is named: no change helped, or correct answers are not known."""
    return NO_CAUSE if report.get("answers") is not None else NOT_TRIED


def _rest(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the line on the gap that the change leaves; none if it leaves a tenth or less."""
    words = gap_sentence(found)
    return [("remains", words)] if words else []


def gap_sentence(found: dict[str, Any]) -> str:
    """Describe the gap to the best known answers if a change leaves more than a tenth of it.

    Examples
    --------
    >>> trial = {"measure": "accuracy", "possible": 0.88, "possible_at": "conv2:out"}
    >>> print(gap_sentence({"trial": trial | {"closed": 0.75}}))
    the change closes 75 % of the gap to a linear probe of conv2 (88 %): there is another fault, \
or the model was never as good as this probe
    """
    trial = found.get("trial") or {}
    closed, best = trial.get("closed"), trial.get("possible")
    if closed is None or best is None or closed >= CLOSED:
        return ""
    words = share(best) if trial["measure"] == "accuracy" else f"loss {number(best)}"
    where = shown(trial["possible_at"].removesuffix(":out"), 40)
    is_probe = where != "the reference"
    where = f"a linear probe of {where}" if is_probe else where
    # a probe is fitted on these rows; the reference is what the model answered when it was right
    rest = ", or the model was never as good as this probe" if is_probe else ""
    return (
        f"the change closes {share(closed)} of the gap to {where} ({words}): "
        f"there is another fault{rest}"
    )


def first_screen(report: dict[str, Any]) -> Markup | None:
    """Return the top of the page, below its title; None if there is nothing to show."""
    parts = [_large_figure(report), _cause(report), _worst(report)]
    kept = [part for part in parts if part is not None]
    return el("div", *kept, cls="first") if kept else None


def _large_figure(report: dict[str, Any]) -> Markup | None:
    """Return the main number with its interval, beside the numbers to compare it with."""
    answers = report.get("answers")
    if answers is None:
        return None
    share_of = answers["measure"].endswith("accuracy")
    say = share if share_of else number
    ends = "" if answers["low"] is None else f" ({say(answers['low'])} to {say(answers['high'])})"
    label, noun = {
        "accuracy": ("correct", "row"),
        "nats_per_token": ("nats per token", "token"),
        "rms_error": ("off (root mean square)", "row"),
        "label_accuracy": ("of labels correct", "row"),
        "rank_accuracy": ("correct", "row"),
        "pixel_accuracy": ("of pixels correct", "row"),
    }[answers["measure"]]
    heads = answers.get("heads") or []
    own = shown(heads[0]["column"], 28) if len(heads) > 1 else "this model"
    lines = [(own, answers["value"])]
    if answers["best"] is not None:
        where = shown(answers["best"]["site"].removesuffix(":out"), 28)
        probe = "linear probe" if share_of or answers["measure"] == "rms_error" else "read out"
        lines.append((f"{probe} at {where}", answers["best"]["value"]))
    usual = {"rms_error": "the mean", "nats_per_token": "counts"}
    lines.append((usual.get(answers["measure"], "the commonest label"), answers["commonest"]))
    for head in heads[1:]:
        if head["measure"] == answers["measure"]:
            lines.append((shown(head["column"], 28), head["value"]))
    kept = [(name, value) for name, value in lines if value is not None]
    whole = 1.0 if share_of else max(abs(value) for _, value in kept) or 1.0
    bars = [_bar(name, value, value / whole, say(value)) for name, value in kept]
    return el(
        "div",
        el("p", el("b", tied(say(answers["value"]))), el("span", label), cls="large"),
        el("p", tied(f"of {plural(answers['n_rows'], noun)}{ends}" if share_of else
                     f"on {plural(answers['n_rows'], noun)}{ends}"), cls="ends"),
        el("div", *bars, cls="beside"),
        cls="figures",
    )  # fmt: skip


def _bar(name: str, value: float, part: float, said: str) -> Markup:
    width = round(_WIDE * min(1.0, max(0.0, part)))
    lines = (
        el("rect", x=0, y=0, width=_WIDE, height=10, cls="room"),
        el("rect", x=0, y=0, width=width, height=10, cls="part"),
    )
    svg = el("svg", *lines, viewBox=f"0 0 {_WIDE} 10", preserveAspectRatio="none", role="img",
             aria_label=f"{name}: {said}")  # fmt: skip
    return el("div", el("span", name, cls="name"), svg, el("span", tied(said), cls="value"))


def _cause(report: dict[str, Any]) -> Markup | None:
    finding = first_finding(report)
    if finding is None:
        words = next((text for _, text in cause_lines(report)), "")
        return el("p", tied(words[:1].upper() + words[1:]), ".", cls="why") if words else None
    none = next((text for _, text in cause_lines(report) if text in (NO_CAUSE, NOT_TRIED)), "")
    link = el("a", finding["code"], href=f"#finding-{finding['code']}")
    fix = finding.get("fix")
    is_known = is_cause(report, finding) or is_part(report, finding)
    word = fix_word(finding).capitalize() if is_known else "Advice"
    rest = gap_sentence(finding) if is_known else ""
    return el(
        "div",
        el("p", tied(f"{none[:1].upper()}{none[1:]}. Also seen:")) if none else None,
        el("p", badge(finding["level"], finding["title"]), " ", link, cls="named"),
        el("p", tied(finding["sentence"]), cls="sentence"),
        el("p", el("b", f"{word}: "), tied(fix)) if fix else None,
        el("p", "Part of the cause: " if is_part(report, finding) else "", tied(f"{rest}."))
        if rest
        else None,
        command(finding["next"]) if finding["next"] else None,
        cls="why",
    )


def _worst(report: dict[str, Any]) -> Markup | None:
    rows = worst_of(report)[:SHOWN]
    if not rows:
        return None
    lead = el("p", "Worst inputs: ", el("a", "all of them", href="#wrong"), cls="lead")
    return join(lead, el("div", *map(_card, rows), cls="gallery"))


def _card(row: dict[str, Any]) -> Markup:
    given = row.get("input")
    drawn = None
    if given is not None and PICTURE.fullmatch(given):
        drawn = el("img", src=Markup(given), alt="the input", cls="thumb")
    elif given is not None:
        drawn = el("p", code(shown(given.replace("\n", ", "), 120)), cls="given")
    sure = "" if row["confidence"] is None else f", {share(row['confidence'])} sure"
    truth, answer = (_value(row[side]) for side in ("truth", "answer"))
    lost = "" if row["loss"] is None else f"loss {number(row['loss'])}"
    verb = "called" if isinstance(row["answer"], str) else "answered"
    title = f"{truth} {verb} {answer}{sure}" if answer else lost
    return el("figure", drawn, el("figcaption", el("b", title), el("span", place_of(row))))


def _value(value: Any) -> str:
    return "" if value is None else shown(value, 40) if isinstance(value, str) else number(value)
