"""Unlearning: whether what was forgotten is gone, or only no longer said."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sonde import Model
from sonde.core import ChartAxis, marks
from sonde.data import ItemInputs, open_inputs
from sonde.edit import Forgotten, forgotten
from sonde.metrics import Metric
from sonde.report import Answer
from sonde_studies.parts.figures import names, unfolded
from sonde_studies.parts.traces import (
    SHOTS,
    Reading,
    fits_by_chance,
    read_by_old,
    relearned,
    shuffled,
    sides_of,
)

QUESTION = "Is what the model was made to forget really gone?"
LEFT, OLD_LEFT, ALPHA = 0.05, 0.1, 0.01
"""Balanced accuracy beyond each control from which traces count: of new heads, and of the old one,
whose fit to the order of the units must also be no chance."""
ATTACK = "attack by low loss (0.5 = nothing to tell)"
UNHELD = "Pass unseen examples of the forgotten classes as held for an attack by loss."
WEAK = (
    "Shuffled weights are a weak control: states of a model that never saw a class often "
    "tell it apart too. Pass a model that was trained without it as gold."
)
ONE_GOLD = (
    "Intervals are over rows: with one gold model they do not know how such models differ. Pass a "
    "second one, trained in another order: second_gold."
)


def unlearning_audit(
    before: Model,
    after: Model,
    forget: Any,
    retain: Any,
    *,
    held: Any = None,
    gold: Model | None = None,
    second_gold: Model | None = None,
    of_class: str | None = None,
    site: str = "auto",
    label_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Audit a model that was made to forget: its answers, its states, what it cost.

    Classes: two readers look at the states, a head that learned on the states before, and a new
    head that is shown a few examples of the class. If either has a higher balanced accuracy after
    unlearning than on models that never saw the class, the states still hold what the answers deny.
    Rows of classes that stay (a person's rows), and texts: an attack that takes low losses for a
    sign of training; it needs held.

    Example: sonde recipe unlearning-audit BEFORE AFTER FORGET RETAIN --gold GOLD -o audit.html

    Parameters
    ----------
    before : Model
        The classifier as it was.
    after : Model
        The classifier that was made to forget.
    forget : str, path or iterable
        Labelled examples of the classes that were to be forgotten, or rows, or texts.
    retain : str, path or iterable
        Labelled examples of the other classes, or the other rows or texts.
    held : str, path or iterable, optional
        Examples like the forgotten ones that no model saw, for an attack by low loss.
    gold : Model, optional
        A model trained without the forget examples; without it, the model with the weights of each
        layer shuffled stands in, a much weaker control.
    second_gold : Model, optional
        A second one, trained in another order: traces must exceed both.
    of_class : str, optional
        Name of one class: of the forget part it is taken, of the retain part all but it, so that
        both may name the same data.
    site : str, default="auto"
        Where the states are read; "auto" is after the last block.
    label_column : str, optional
        Column of the class, where its name does not say so.
    limit : int, optional
        Read only the first items of each part.
    seed : int, default=0
        Draws the examples that the new head sees.
    """
    options: dict[str, Any] = {"label_column": label_column, "limit": limit}
    parts = {"forget": forget, "retain": retain} | ({} if held is None else {"held": held})
    inputs = {name: open_inputs(before, part, **options) for name, part in parts.items()}
    if of_class is not None:
        inputs = {n: p.of_class(of_class, without=n == "retain") for n, p in inputs.items()}
    said = forgotten(before, after.module, **inputs, retrained=gold and gold.module)
    if held is not None and not _are_classes(inputs):
        return _by_losses(said, len(inputs["forget"]), has_gold=gold is not None)
    golds = [m for m in (gold, second_gold) if m is not None] or [shuffled(before, seed)]
    names_of = {"control" if n == 0 else "second control": m for n, m in enumerate(golds)}
    models = {"before": before, "after": after, **names_of}
    how = options | {"sites": site}
    states = sides_of("unlearning_audit", models, (forget, retain), of_class, progress, **how)
    old = read_by_old(states)
    new = {name: relearned(both[0], both[1], seed) for name, both in states.items()}
    is_left = min(_least(old, control) for control in names_of) > OLD_LEFT
    is_left = is_left and fits_by_chance(states, "after", seed) <= ALPHA
    few = {name: _mean([by[n] for n in SHOTS]) for name, by in new.items()}
    is_left = is_left or min(_least(few, control) for control in names_of) > LEFT
    advice = (*([] if gold else [WEAK]), *([ONE_GOLD] if gold and not second_gold else []))
    return _answer(said, old, new, is_left, len(inputs["forget"]), gold is not None, advice)


def _answer(
    said: Forgotten,
    old: Mapping[str, Reading],
    new: Mapping[str, Mapping[int, Reading]],
    is_left: bool,
    n: int,
    has_gold: bool,
    advice: Sequence[str],
) -> Answer:
    """Return what the readers of the states found."""
    was, own = said.before["forget"].accuracy, said.after["forget"].accuracy
    lost = said.before["retain"].accuracy - said.after["retain"].accuracy
    silent = own < 0.5 * was
    verdict = "not forgotten" if not silent else "only silent" if is_left else "gone"
    control = "a model that never saw them" if has_gold else "shuffled weights"
    answers = {"before": said.before, "after": said.after, "control": said.retrained or {}}
    ways = {"head of before": {name: r.accuracy() for name, r in old.items()}}
    ways |= {
        f"new head, {k} shown": {name: by[k].accuracy() for name, by in new.items()} for k in SHOTS
    }
    table = [
        {"model": name}
        | {f"{part} accuracy": s.accuracy for part, s in answers.get(name, {}).items()}
        | {way: scores[name] for way, scores in ways.items()}
        for name in old
    ]
    worded = {"head that learned on the states before": ways.pop("head of before"), **ways}
    points = unfolded(worded, "reader", "model")
    points = [p | ({"model": control} if p["model"] == "control" else {}) for p in points]
    title = "What readers of the states still know of the forgotten class"
    x = ChartAxis(
        "accuracy", title="balanced accuracy (0.5 = nothing)", share=True, low=0.0, high=1.0
    )
    gain, error = old["after"].beyond(old["control"])
    shown, (more, other) = SHOTS[1], new["after"][SHOTS[1]].beyond(new["control"][SHOTS[1]])
    reads = {name: f"{r.accuracy():.3f}" for name, r in old.items()}
    learns = {name: f"{by[shown].accuracy():.3f}" for name, by in new.items()}
    return Answer(
        question=QUESTION,
        verdict=verdict,
        level="clear" if verdict == "gone" else "warning" if silent and not has_gold else "error",
        sentence=f"Accuracy on the forget examples went from {was:.3f} to {own:.3f}, and on the "
        f"others fell by {lost:.3f}. A head that learned on the states before tells the forgotten "
        f"from the others with a balanced accuracy of {reads['after']} on the states after, and "
        f"{reads['control']} on those of {control} (difference {gain:.3f} ± {2 * error:.3f}; 0.5 "
        f"is chance); a new head that is shown {shown} examples with {learns['after']} and "
        f"{learns['control']} ({more:.3f} ± {2 * other:.3f}).",
        value=gain,
        se=error,
        null=0.0,
        n=n,
        direction="higher",
        rows=tuple(table),
        drawn=marks(title, points, x, names("reader"), by="model", size=110, filled=True),
        facts={"control": control} | _attack(said),
        advice=(*advice, *([UNHELD] if said.attack is None else [])),
    )


def _by_losses(said: Forgotten, n: int, *, has_gold: bool) -> Answer:
    """Return whether an attack by low loss still finds the rows or texts, for want of classes."""
    now, then = (m for m in (said.attack, said.attack_before) if m is not None)
    gold = said.attack_retrained
    base = (0.5, 0.5) if gold is None else (gold.low, gold.high)
    if now.low > base[1]:
        verdict = "not forgotten"
    elif now.high < base[0]:
        verdict = "stands out by high losses"
    else:
        verdict = "gone by its losses" if then.low > base[1] else "cannot tell"
    beside = f", on the gold model {_interval(gold)}" if gold else ""
    models = {"before": then, "after": now} | ({"control": gold} if gold else {})
    rows = [{"model": k, "AUROC": float(m.value), "low": m.low, "high": m.high}
            for k, m in models.items()]  # fmt: skip
    title, x = (
        "How well low losses tell forget from held examples",
        ChartAxis("AUROC", low=0, high=1),
    )
    return Answer(
        question=QUESTION,
        verdict=verdict,
        level="clear" if verdict == "gone by its losses"
        else "warning" if verdict == "cannot tell" else "error",
        sentence="An attack that takes low losses for a sign of training tells forget from held "
        f"examples with an AUROC of {_interval(now)} after, {_interval(then)} before{beside} (0.5 "
        "is chance).",
        value=float(now.value),
        se=now.se,
        null=0.5 if gold is None else float(gold.value),
        n=n,
        range=(0.0, 1.0),
        direction="higher",
        rows=tuple(rows),
        drawn=marks(title, rows, x, names("model"), size=110, filled=True),
        facts={"control": "a model that never saw them" if has_gold else "none"},
        advice=(
            "Forget and retain examples share their classes, or have none: only the losses are "
            "audited, not the states.",
            *([] if has_gold else ["Pass a model that was trained without them as gold: easy rows "
                                   "have low losses too."]),
        ),
    )  # fmt: skip


def _are_classes(inputs: Mapping[str, ItemInputs]) -> bool:
    """Return whether the forget part has classes that the retain part has not."""
    forget, retain = (
        {*torch.cat([b.label for b in part.batches(0, len(part))]).tolist()}
        for part in (inputs["forget"], inputs["retain"])
    )
    return not forget & retain and -1 not in forget | retain


def _least(readings: Mapping[str, Reading], control: str) -> float:
    """Return the lower end of the gain of the model after over a control."""
    gain, error = readings["after"].beyond(readings[control])
    return gain - 2 * error


def _mean(readings: Sequence[Reading]) -> Reading:
    """Return the mean of readings of the same rows."""
    n = len(readings)
    return Reading(sum(r.hits for r in readings) / n, sum(r.alarms for r in readings) / n)


def _interval(found: Metric) -> str:
    return f"{float(found.value):.3f} ({found.low:.3f} to {found.high:.3f})"


def _attack(said: Forgotten) -> dict[str, str]:
    now, then = said.attack, said.attack_before
    return {ATTACK: f"{_interval(now)}, before {_interval(then)}"} if now and then else {}
