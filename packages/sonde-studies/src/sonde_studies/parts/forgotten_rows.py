"""Audits of unlearning by losses, and gains of state probes over controls."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sonde.core import ChartAxis, marks
from sonde.data import ItemInputs
from sonde.detect import MMD
from sonde.edit import Forgotten, membership_attack
from sonde.metrics import Metric
from sonde.report import Answer
from sonde_studies.parts.figures import names, unfolded
from sonde_studies.parts.traces import SHOTS, Reading

QUESTION = "Is what the model was made to forget really gone?"
UNHELD = "Pass unseen examples of the forgotten classes as held for an attack by loss."
ATTACK = "attack by low loss (0.5 = nothing to tell)"
SURE = 2.576
"""Standard errors from chance that an attack must lie: 1 % in all."""
UNLIKE = 0.1
"""p-value of no difference below which held examples are no stand-in for those to forget."""
OTHERS = (
    "The held examples differ from those to forget, so their losses differ on a model that never "
    "saw either. Pass held examples of the same kind, such as other rows of the same person, or a "
    "model that was trained without those to forget as gold."
)


def difference_of_inputs(forget: Any, held: Any) -> float:
    """Return the p-value of no difference between examples to forget and held examples.

    Parameters
    ----------
    forget, held : what ``sonde.gather`` returns
        States of a model that saw neither part, and labels where there are any.
    """
    known = torch.unique(torch.cat([forget.label, held.label]))
    sides = [
        torch.cat([part.last.double(), (part.label[:, None] == known).double()], 1)
        for part in (forget, held)
    ]
    spread = torch.cat(sides).std(0)
    scale = torch.where(spread > 0, spread, 1.0)
    return float(MMD().between(*(x / scale for x in sides)).p)


def audit_by_losses(said: Forgotten, n: int, differ: float | None) -> Answer:
    """Return whether an attack by low loss still finds the rows or texts, for want of classes.

    ``differ`` is the p-value of ``difference_of_inputs``, None if there is a gold model. If forget
    and held examples differ, their losses differ on every model, and only a gold model could tell.
    With a gold model the attack takes each row's loss less the gold model's: a row that is hard for
    both counts for neither.
    """
    has_gold, is_alike = differ is None, differ is None or differ > UNLIKE
    now, then = (m for m in (said.attack, said.attack_before) if m is not None)
    gold = said.attack_retrained
    judged = attacks_less_gold(said) if gold else {"after": now, "before": then}
    (low, high), was = _wide(judged["after"]), judged["before"]
    if not is_alike:
        verdict = "cannot tell"
    elif low > 0.5:
        verdict = "not forgotten"
    elif high < 0.5:
        verdict = "stands out by high losses"
    else:
        verdict = "gone by its losses" if was.low > 0.5 else "cannot tell"
    unlike = "" if is_alike else f"; but the two parts differ as inputs (p = {differ:.3g})"
    beside = (
        f", on the gold model {interval_of(gold)}; by losses less the gold model's "
        f"{interval_of(judged['after'])} after"
        if gold
        else ""
    )
    models = {"before": then, "after": now} | ({"control": gold} if gold else {})
    models |= {"after, less the control": judged["after"]} if gold else {}
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
        f"examples with an AUROC of {interval_of(now)} after, {interval_of(then)} before{beside} "
        f"(0.5 is chance){unlike}.",
        value=float(judged["after"].value),
        se=judged["after"].se,
        null=0.5,
        n=n,
        range=(0.0, 1.0),
        direction="higher",
        rows=tuple(rows),
        drawn=marks(title, rows, x, names("model"), low="low", high="high", size=110, filled=True),
        facts={"control": "a model that never saw them"} if differ is None
        else {"control": "none", "p of no difference between forget and held": f"{differ:.3g}"},
        advice=(
            "Forget and retain examples share their classes, or have none: only the losses are "
            "audited, not the states. Held examples must be like those to forget, such as other "
            "rows of the same person.",
            *([] if is_alike else [OTHERS]),
            *([] if has_gold else ["Pass a model that was trained without them as gold: easy rows "
                                   "have low losses too."]),
        ),
    )  # fmt: skip


def attacks_less_gold(said: Forgotten) -> dict[str, Metric]:
    """Return the attacks on the models after and before by losses less the gold model's."""
    gold, parts = said.rows["retrained"], ("forget", "held")
    keys = torch.cat([gold[part].key for part in parts])
    return {
        name: membership_attack(*(said.rows[name][p].less(gold[p]) for p in parts), group=keys)
        for name in ("after", "before")
    }


def _wide(found: Metric) -> tuple[float, float]:
    """Return the 99 % interval of an attack."""
    value, half = float(found.value), SURE * float(found.se or 0.0)
    return min(found.low, value - half), max(found.high, value + half)


def are_classes(inputs: Mapping[str, ItemInputs]) -> bool:
    """Return whether the forget set has classes that the retain set lacks."""
    forget, retain = (
        {*torch.cat([b.label for b in part.batches(0, len(part))]).tolist()}
        for part in (inputs["forget"], inputs["retain"])
    )
    return not forget & retain and -1 not in forget | retain


def least_gain(readings: Mapping[str, Reading], control: str) -> float:
    """Return the lower limit of the changed model's gain over a control."""
    gain, error = readings["after"].beyond(readings[control])
    return gain - 2 * error


def mean_reading(readings: Sequence[Reading]) -> Reading:
    """Return the mean of several readings of the same rows."""
    n = len(readings)
    return Reading(sum(r.hits for r in readings) / n, sum(r.alarms for r in readings) / n)


def interval_of(found: Metric) -> str:
    """Return an AUROC with its interval, as text."""
    return f"{float(found.value):.3f} ({found.low:.3f} to {found.high:.3f})"


def attack_facts(said: Forgotten) -> dict[str, str]:
    """Return the loss attacks after and before, if unseen examples were given."""
    now, then = said.attack, said.attack_before
    return {ATTACK: f"{interval_of(now)}, before {interval_of(then)}"} if now and then else {}


def readers_of(
    said: Forgotten,
    old: Mapping[str, Reading],
    new: Mapping[str, Mapping[int, Reading]],
    control: str,
) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    """Return the accuracies of answers and of state probes, as a table and a picture."""
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
    picture = marks(title, points, x, names("reader"), by="model", size=110, filled=True)
    return tuple(table), picture


def audit_by_states(
    said: Forgotten,
    old: Mapping[str, Reading],
    new: Mapping[str, Mapping[int, Reading]],
    is_left: bool,
    n: int,
    has_gold: bool,
    advice: Sequence[str],
) -> Answer:
    """Return the results of the state probes."""
    was, own = said.before["forget"].accuracy, said.after["forget"].accuracy
    lost = said.before["retain"].accuracy - said.after["retain"].accuracy
    silent = own < 0.5 * was
    verdict = "not forgotten" if not silent else "only silent" if is_left else "gone"
    control = "a model that never saw them" if has_gold else "shuffled weights"
    table, drawn = readers_of(said, old, new, control)
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
        rows=table,
        drawn=drawn,
        facts={"control": control} | attack_facts(said),
        advice=(*advice, *([UNHELD] if said.attack is None else [])),
    )
