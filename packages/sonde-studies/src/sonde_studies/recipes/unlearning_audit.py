"""Unlearning: test whether information is removed or only no longer output."""

from typing import Any

from sonde import Model, gather, read
from sonde.data import open_inputs
from sonde.edit import forgotten
from sonde.report import Answer
from sonde_studies.parts import forgotten_rows
from sonde_studies.parts.forgotten_groups import are_other_groups, audit_by_groups
from sonde_studies.parts.forgotten_rows import (
    are_classes,
    audit_by_losses,
    audit_by_states,
    difference_of_inputs,
    least_gain,
    mean_reading,
)
from sonde_studies.parts.once import copies_once
from sonde_studies.parts.traces import (
    SHOTS,
    fits_by_chance,
    read_by_old,
    relearned,
    shuffled,
    sides_of,
)

QUESTION = forgotten_rows.QUESTION
LEFT, OLD_LEFT, ALPHA = 0.05, 0.1, 0.01
"""Balanced accuracy beyond each control from which traces count: of new heads, and of the old one,
whose fit to the order of the units must also be no chance."""
WEAK = (
    "Shuffled weights are a weak control: states of a model that never saw a class often "
    "tell it apart too. Pass a model that was trained without it as gold."
)
ONE_GOLD = (
    "Intervals are over rows: with one gold model they do not know how such models differ. Pass a "
    "second one, trained in another order: second_gold."
)


@copies_once()
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
    group_column: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Answer:
    """Audit a model that was made to forget: its answers, its states, what it cost.

    Classes: two readers look at the states, a head that learned on the states before, and a new
    head that is shown a few examples of the class. If either has a higher balanced accuracy after
    unlearning than on models that never saw the class, the states still hold what the answers deny.
    Rows of classes that stay (a person's rows), and texts: an attack that takes low losses for a
    sign of training; it needs held, and without gold held examples that are like those to forget.
    If the forgotten groups (persons, documents) have no held rows, groups are its units.

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
    group_column : str, optional
        Column of the group of a row, such as a person or a document, where its name does not say
        so. Losses of groups that have no held rows are compared group by group.
    limit : int, optional
        Read only the first items of each part.
    seed : int, default=0
        Draws the examples that the new head sees.
    """
    options: dict[str, Any] = {
        "label_column": label_column, "group_column": group_column, "limit": limit,
    }  # fmt: skip
    parts = {"forget": forget, "retain": retain} | ({} if held is None else {"held": held})
    inputs = {name: open_inputs(before, part, **options) for name, part in parts.items()}
    if of_class is not None:
        inputs = {n: p.of_class(of_class, without=n == "retain") for n, p in inputs.items()}
    said = forgotten(before, after.module, **inputs, retrained=gold and gold.module)
    if held is not None and not are_classes(inputs):
        if are_other_groups(inputs):
            return audit_by_groups(said)
        differ = None
        if gold is None:
            naive = shuffled(before, seed)
            unseen = (
                gather(read(naive, part, sites=site, **options), progress)
                for part in (forget, held)
            )
            differ = difference_of_inputs(*unseen)
        return audit_by_losses(said, len(inputs["forget"]), differ)
    golds = [m for m in (gold, second_gold) if m is not None] or [shuffled(before, seed)]
    names_of = {"control" if n == 0 else "second control": m for n, m in enumerate(golds)}
    models = {"before": before, "after": after, **names_of}
    how = options | {"sites": site}
    states = sides_of("unlearning_audit", models, (forget, retain), of_class, progress, **how)
    old = read_by_old(states)
    new = {name: relearned(both[0], both[1], seed) for name, both in states.items()}
    is_left = min(least_gain(old, control) for control in names_of) > OLD_LEFT
    is_left = is_left and fits_by_chance(states, "after", seed) <= ALPHA
    few = {name: mean_reading([by[n] for n in SHOTS]) for name, by in new.items()}
    is_left = is_left or min(least_gain(few, control) for control in names_of) > LEFT
    advice = (*([] if gold else [WEAK]), *([ONE_GOLD] if gold and not second_gold else []))
    return audit_by_states(said, old, new, is_left, len(inputs["forget"]), gold is not None, advice)
