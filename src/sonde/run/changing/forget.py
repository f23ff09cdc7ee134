"""``sonde.forget``: change a model as if some examples had never been in its training data."""

from pathlib import Path
from typing import Any, Literal

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.data import ItemInputs, open_inputs
from sonde.edit import (
    Forgotten,
    GradientAscent,
    NegPreference,
    RandomLabel,
    Retrain,
    SelectiveDampening,
    forgotten,
)
from sonde.run.changing.acting import Change, idle_note, language_of, open_for_change
from sonde.run.changing.acts import plan_act, plan_controls
from sonde.run.changing.edit_document import edit_document
from sonde.run.changing.edit_table import EditTable
from sonde.run.changing.judge import JudgedSide, judge
from sonde.run.reading.notes import data_name
from sonde.weights import Rewrite, save_edited

Way = Literal["random", "preference", "ascent", "dampen"]
TRAINED = {"ascent": GradientAscent, "random": RandomLabel, "preference": NegPreference}
JUDGED = 128
"""Most examples of a side that the change is judged by."""


def forget(
    model: Any,
    data: Any,
    output: str | Path,
    *,
    retain: Any = None,
    held: Any = None,
    of_class: str | None = None,
    method: Way = "random",
    alpha: float | None = None,
    retrain: bool = False,
    limit: int | None = None,
    force: bool = False,
    device: str = "auto",
    progress: bool = True,
    **reading: Any,
) -> Change:
    """Write a model as if it had never seen some of its training data.

    The document says what became of each part of the data and, with ``held``, whether an attacker
    can still tell who was in the training data. The same as ``sonde edit forget``.

    Parameters
    ----------
    model : str, path, Model or module
        Where the weights of the changed model come from, as in ``sonde.load``.
    data : data
        Examples to forget, with their labels or texts.
    output : path
        Folder for the new model; ``sonde.undo`` takes the change back.
    retain : data, optional
        The rest of the training data; with ``of_class`` by default ``data``.
    held : data, optional
        Examples that the model never saw, for the membership attack.
    of_class : str, optional
        Forget this class of ``data``, and keep the others of ``retain``.
    method : {"random", "preference", "ascent", "dampen"}
        How it is made to forget: wrong answers, answers less likely than before, a higher loss, or
        smaller weights without training.
    alpha : float, optional
        For ``dampen``: how much more a weight must matter to ``data``.
    retrain : bool, default=False
        Train a model anew without ``data``, to compare with.
    limit : int, optional
        Read only the first examples of each part.
    force : bool, default=False
        Write the model even where the change is too large, or does no more than chance.
    device : str, default="auto"
        Device of the model: ``auto`` takes cuda, mps or cpu, and ``cpu`` or ``cuda:1`` name one.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.
    **reading
        Options of ``sonde.read`` about data, such as ``label_column``.

    Raises
    ------
    InputError
        If a part has no examples, or the change is too large.
    """
    rule, output = _rule(method, alpha), Path(output)
    if retain is None and of_class is None:
        raise InputError(
            "edit forget: expected --retain, the training data that the model must not "
            "forget, got none. Name this data, or name the class to forget with --of-class."
        )
    opened = open_for_change(model, output, device)
    kept = data if retain is None else retain
    words = {"forget": data, "retain": kept, "held": held}
    sides = _sides(opened, words, of_class, {**reading, "limit": limit})
    plan = rule.plan(opened, sides)
    act, calm = plan_act(opened, plan), sides["retain"].first(JUDGED)
    judgement = judge(
        opened,
        act,
        [JudgedSide("forget", sides["forget"].first(JUDGED), -1)],
        calm,
        controls=plan_controls(opened, plan),
        progress=progress,
    )
    if judgement.too_large and not force:
        raise InputError(
            f"this edit is too large: {judgement.too_large}. Take another --method, a larger "
            "--alpha, or --force."
        )
    notes = idle_note(judgement, force=force)
    only = "" if of_class is None else f", class {of_class}"
    facts: dict[str, Any] = {
        "model": opened.name,
        "method": plan.method,
        "target": f"{data_name(data, sides['forget'])}{only} less likely",
        "neutral": data_name(kept, calm),
    }
    if notes and not force:
        document = edit_document("forget", judgement, places=list(plan.changes), **facts)
        return Change(document, None, judgement, notes)
    anew = Retrain().plan(opened, sides).fold(opened) if retrain else None
    became = forgotten(opened, plan.fold(opened), **sides, retrained=anew)
    saved = save_edited(opened, plan, output, name=opened.name)
    document = edit_document(
        "forget",
        judgement,
        places=list(saved.tensors),
        output=str(output),
        tables=tables_of(became),
        notes=_remarks(became),
        language=language_of(opened, act, judgement, calm),
        **facts,
    )
    return Change(
        {**document, "forgotten": became.json()}, output, judgement, (*notes, *saved.notes)
    )


def _rule(method: Way, alpha: float | None) -> Rewrite:
    if method == "dampen":
        return SelectiveDampening(alpha)
    if alpha is not None:
        raise InputError(f"--alpha: the method {method} has no parameter alpha. Leave --alpha out.")
    return TRAINED[method]()


def _sides(
    model: Model, words: dict[str, Any], of_class: str | None, options: dict[str, Any]
) -> dict[str, ItemInputs]:
    """Return the data by part: forget, retain, and held if it was given."""
    sides: dict[str, ItemInputs] = {}
    for part, word in words.items():
        if word is None:
            continue
        split = "test" if part == "held" else "train"
        data = open_inputs(model, word, split=split, **options)
        if of_class is not None:
            data = data.of_class(of_class, without=part == "retain")
        sides[part] = data
        if not len(data):
            raise InputError(f"--{part}: expected examples, got none. Give it other data.")
    return sides


def _remarks(found: Forgotten) -> list[str]:
    notes = [] if found.attack else ["Without --held, a membership attack cannot be evaluated."]
    if found.retrained is None:
        notes.append("--retrain also shows a model that was trained without these examples.")
    return notes


def tables_of(found: Forgotten) -> list[EditTable]:
    """Return tables of each part's accuracy and loss, and of the membership attack's AUROC."""
    models = {"before": found.before, "after": found.after, "trained anew": found.retrained}
    shown = {name: parts for name, parts in models.items() if parts is not None}
    columns = ("model", *(f"{what}, {part}" for part in found.after for what in ("right", "nats")))
    rows = tuple(
        (name, *(value for part in parts.values() for value in (part.accuracy, part.loss)))
        for name, parts in shown.items()
    )
    tables = [EditTable("Accuracy and mean loss on each part of the data", columns, rows)]
    attacks = {
        "before": found.attack_before,
        "after": found.attack,
        "trained anew": found.attack_retrained,
    }
    attack_rows = tuple(
        (n, float(m.value), m.low, m.high) for n, m in attacks.items() if m is not None
    )
    if attack_rows:
        title = "Membership attack by low loss, forgotten against unseen examples; 0.5 is chance"
        tables.append(EditTable(title, ("model", "AUROC", "low", "high"), attack_rows))
    return tables
