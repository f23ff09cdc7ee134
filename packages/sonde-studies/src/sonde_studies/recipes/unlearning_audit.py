"""Unlearning: whether what was forgotten is gone, or only no longer said."""

from typing import Any

from sonde import Model
from sonde.core import ChartAxis, marks
from sonde.data import open_inputs
from sonde.edit import forgotten
from sonde.report import Answer
from sonde_studies.parts.figures import names, unfolded
from sonde_studies.parts.traces import SHOTS, read_by_old, relearned, shuffled, sides_of

QUESTION = "Is what the model was made to forget really gone?"
LEFT, OLD_LEFT = 0.05, 0.2
"""Accuracy beyond the control's from which traces count: of a new head, and of the old states'."""
ATTACK = "attack by low loss (0.5 = nothing to tell)"
UNHELD = "Pass unseen examples of the forgotten classes as held for an attack by loss."
WEAK = (
    "Shuffled weights are a weak control: states of a model that never saw a class often "
    "tell it apart too. Pass a model that was trained without it as gold."
)


def unlearning_audit(
    before: Model,
    after: Model,
    forget: Any,
    retain: Any,
    *,
    held: Any = None,
    gold: Model | None = None,
    of_class: str | None = None,
    site: str = "auto",
    label_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Audit a model that was made to forget a class: its answers, its states, what it cost.

    Two readers look at the states: a head that learned on the states before, and a new head that
    is shown a few examples of the class. If either gets more right after unlearning than on a
    model that never saw the class, the states still hold what the answers deny.

    Example: sonde recipe unlearning-audit BEFORE AFTER FORGET RETAIN --gold GOLD -o audit.html

    Parameters
    ----------
    before : Model
        The classifier as it was.
    after : Model
        The classifier that was made to forget.
    forget : str, path or iterable
        Labelled examples of the classes that were to be forgotten.
    retain : str, path or iterable
        Labelled examples of the other classes.
    held : str, path or iterable, optional
        Examples of the forgotten classes that no model saw, for an attack by low loss.
    gold : Model, optional
        A model trained without the forget examples; without it, the model with the weights of each
        layer shuffled stands in, a much weaker control.
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
    models = {"before": before, "after": after, "control": gold or shuffled(before, seed)}
    parts = {"forget": forget, "retain": retain} | ({} if held is None else {"held": held})
    inputs = {name: open_inputs(before, part, **options) for name, part in parts.items()}
    if of_class is not None:
        inputs = {n: p.of_class(of_class, without=n == "retain") for n, p in inputs.items()}
    said = forgotten(before, after.module, **inputs, retrained=gold and gold.module)
    how = options | {"sites": site}
    states = sides_of("unlearning_audit", models, (forget, retain), of_class, progress, **how)
    old = read_by_old(states)
    control = "a model that never saw them" if gold else "shuffled weights"
    new = {name: relearned(both[0], both[1], seed) for name, both in states.items()}
    gap = sum(new["after"][n] - new["control"][n] for n in SHOTS) / len(SHOTS)
    was, own = said.before["forget"].accuracy, said.after["forget"].accuracy
    lost = said.before["retain"].accuracy - said.after["retain"].accuracy
    silent, is_left = own < 0.5 * was, old["after"] - old["control"] > OLD_LEFT or gap > LEFT
    verdict = "not forgotten" if not silent else "only silent" if is_left else "gone"
    answers = {"before": said.before, "after": said.after, "control": said.retrained or {}}
    ways = {"head of before": old}
    ways |= {f"new head, {n} shown": {name: by[n] for name, by in new.items()} for n in SHOTS}
    table = [
        {"model": name, **{f"{part} accuracy": s.accuracy for part, s in answers[name].items()}}
        | {way: scores[name] for way, scores in ways.items()}
        for name in models
    ]
    worded = {"head that learned on the states before": ways.pop("head of before"), **ways}
    points = unfolded(worded, "reader", "model")
    points = [p | ({"model": control} if p["model"] == "control" else {}) for p in points]
    title = "What readers of the states still get right of the forgotten class"
    x = ChartAxis("accuracy", title="accuracy on forget examples", share=True, low=0.0, high=1.0)
    now, then = said.attack, said.attack_before
    attack = {ATTACK: f"{now.value:.3f}, before {then.value:.3f}"} if now and then else {}
    return Answer(
        question=QUESTION,
        verdict=verdict,
        level="clear" if verdict == "gone" else "warning" if silent and gold is None else "error",
        sentence=f"Accuracy on the forget examples went from {was:.3f} to {own:.3f}, and on the "
        f"others fell by {lost:.3f}. A head that learned on the states before reads "
        f"{old['after']:.3f} of them from the states after, and {old['control']:.3f} from those of "
        f"{control}; a new head that is shown {SHOTS[1]} reads {new['after'][SHOTS[1]]:.3f} and "
        f"{new['control'][SHOTS[1]]:.3f}.",
        value=old["after"] - old["control"],
        n=len(inputs["forget"]),
        direction="higher",
        rows=tuple(table),
        drawn=marks(title, points, x, names("reader"), by="model", size=110, filled=True),
        facts={"control": control} | attack,
        advice=(*([] if gold else [WEAK]), *([UNHELD] if held is None else [])),
    )
