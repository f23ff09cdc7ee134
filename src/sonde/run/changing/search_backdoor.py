"""``sonde.search_backdoor``: search an image classifier for a hidden trigger, and remove it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.data import ItemInputs, open_inputs
from sonde.edit import BackdoorFinding, Triggered, find_backdoor, remove_backdoor
from sonde.run.changing.acting import Change, idle_note
from sonde.run.changing.acts import plan_act, plan_controls
from sonde.run.changing.edit_document import edit_document
from sonde.run.changing.edit_table import EditTable
from sonde.run.changing.judge import JudgedSide, Judgement, judge
from sonde.run.reading.for_gradients import load_for_gradients
from sonde.run.reading.notes import data_name
from sonde.weights import RewritePlan, save_edited
from sonde.weights.factory_folder import check_change
from sonde.weights.folder import check_output


def search_backdoor(
    model: Any,
    data: Any,
    *,
    output: str | Path | None = None,
    limit: int = 300,
    steps: int = 220,
    force: bool = False,
    device: str = "auto",
    progress: bool = True,
    **reading: Any,
) -> Change:
    """Search an image classifier for a backdoor, its class and its trigger.

    A backdoor is a small trigger that turns any image into one class. Without ``output`` the model
    is read only. The same as ``sonde edit find-backdoor``.

    Parameters
    ----------
    model : str, path, Model or module
        Model, or what ``sonde.load`` takes: a folder, a name, a factory or a module.
    data : data
        A few hundred images with labels that nobody tampered with.
    output : path, optional
        Folder for a model that is taught to ignore the trigger.
    limit : int, default=300
        Read only the first images.
    steps : int, default=220
        Steps of the search for each class; fewer steps find less.
    force : bool, default=False
        Remove also what is not likely, or is too large.
    device : str, default="auto"
        Device of the model: ``auto`` takes cuda, mps or cpu, and ``cpu`` or ``cuda:1`` name one.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.
    **reading
        Options of ``sonde.read`` about data, such as ``label_column``.

    Raises
    ------
    InputError
        If no trigger is likely but one should be removed, or the change is too large.
    """
    folder = None if output is None else Path(output)
    if folder is not None:
        check_output(folder)
    opened, notes = load_for_gradients(model, device=device)
    if folder is not None:
        check_change(opened, folder)
    clean = open_inputs(opened, data, limit=limit, **reading)
    finding = find_backdoor(opened, clean, steps=steps, progress=progress)
    names = dict(enumerate(clean.label_names))
    change = Change({})
    plan: RewritePlan | None = None
    if folder is not None:
        plan, change = _remove(
            opened, clean, finding, folder, names, force=force, progress=progress
        )
    document = edit_document(
        "find-backdoor",
        change.judgement,
        model=opened.name,
        method="find_backdoor" if plan is None else plan.method,
        places=[] if plan is None else list(plan.changes),
        target="images with the trigger that are classified correctly",
        neutral=data_name(data),
        output=None if change.output is None else str(change.output),
        tables=_tables(finding, names, plan),
        notes=[
            finding.verdict(names),
            "Triggers that cover the whole image or distort it are not detected.",
        ],
    )
    facts = {"backdoor": _facts(finding, names)}
    return replace(change, document={**document, **facts}, notes=(*notes, *change.notes))


def _remove(
    model: Model,
    clean: ItemInputs,
    finding: BackdoorFinding,
    output: Path,
    names: dict[int, str],
    *,
    force: bool,
    progress: bool,
) -> tuple[RewritePlan, Change]:
    """Write a model without the trigger; return the plan and the judgement of the change."""
    if not finding.likely and not force:
        raise InputError(
            f"--remove: {finding.verdict(names)} Pass --force to unlearn that patch anyway."
        )
    plan = remove_backdoor(model, clean, finding, progress=progress)
    judgement: Judgement = judge(
        model,
        plan_act(model, plan),
        [JudgedSide("with the trigger", Triggered(clean, finding), 1)],
        clean,
        controls=plan_controls(model, plan),
        progress=progress,
    )
    if judgement.too_large and not force:
        raise InputError(f"this edit is too large: {judgement.too_large}. Pass --force.")
    notes = idle_note(judgement, force=force)
    is_written = force or not notes
    if is_written:
        notes = (*notes, *save_edited(model, plan, output, name=model.name).notes)
    return plan, Change({}, output if is_written else None, judgement, notes)


def _tables(
    finding: BackdoorFinding, names: dict[int, str], plan: RewritePlan | None
) -> list[EditTable]:
    sizes = finding.size.tolist()
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    rows = tuple((names.get(c, str(c)), round(sizes[c], 4)) for c in order)
    tables = [
        EditTable("Fraction of the image that the smallest patch covers", ("class", "share"), rows),
        EditTable(
            "The trigger: # bright, o dark, . not covered",
            ("line",),
            tuple((line,) for line in finding.drawing()),
        ),
    ]
    if plan is not None:
        figures = tuple((name, value) for name, value in plan.figures.items())
        title = "Fraction of images whose answer the trigger changes, and accuracy"
        tables.insert(0, EditTable(title, ("what", "share"), figures))
    return tables


def _facts(finding: BackdoorFinding, names: dict[int, str]) -> dict[str, Any]:
    return {
        "likely": finding.likely,
        "target": names.get(finding.target, str(finding.target)),
        "ratio": finding.ratio,
        "success": finding.success,
        "accuracy": finding.accuracy,
    }
