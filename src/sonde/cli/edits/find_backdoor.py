"""``sonde edit find-backdoor``: whether an image classifier hides a trigger, and to take it out."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sonde.cli._gradients import load_for_gradients
from sonde.cli._presenting import check_page, present
from sonde.cli.edits._acting import checked_page, is_idle
from sonde.cli.options import DataReading, DataWord, DeviceWord, ModelWord, Printing, named
from sonde.core.errors import InputError

if TYPE_CHECKING:
    from sonde.core.inputs import Model
    from sonde.data import ItemInputs
    from sonde.edit import BackdoorFinding
    from sonde.run.judging.judge import Judgement
    from sonde.weights import RewritePlan


@dataclass(frozen=True)
class FindBackdoor:
    """Say whether an image classifier hides a backdoor, for which class, and show its trigger.

    A backdoor is a small trigger that turns any image into one class. DATA are a few hundred images
    with labels that nobody tampered with. The model is read only; --remove -o NEW writes one that
    was taught to ignore the trigger that was found.

    Differs: finds what nobody named; forget takes named examples away, ablate a named behaviour.

    Example: sonde edit find-backdoor sonde:digits sonde:digits/test --steps 60
    """

    model: ModelWord
    data: DataWord
    remove: Annotated[
        bool, tyro.conf.arg(help="teach the model to ignore the trigger; needs -o")
    ] = False
    output: Annotated[
        Path | None, tyro.conf.arg(aliases=["-o"], metavar="NEW", help="folder for the new model")
    ] = None
    limit: Annotated[int, named("N", "read only the first N images")] = 300
    steps: Annotated[int, named("N", "of the search for each class; fewer find less")] = 220
    device: DeviceWord = "auto"
    report: Annotated[
        Path | None, named("FILE", "page to write, .html or .json (with -o: NEW.html)")
    ] = None
    force: Annotated[bool, tyro.conf.arg(help="remove what is not likely, or is too large")] = False
    reading: DataReading = field(default_factory=DataReading)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Look for a backdoor, print the finding, and remove it if that was asked for."""
        from sonde.data import open_inputs
        from sonde.edit import find_backdoor
        from sonde.weights.factory_folder import check_change

        if self.remove != (self.output is not None):
            raise InputError("edit find-backdoor: expected --remove and -o NEW together, got one.")
        page = self.report
        if self.output is not None:
            page = checked_page(self.report, self.output)
        check_page(page, flag="--report")
        model = load_for_gradients(self.model, device=self.device)
        if self.output is not None:
            check_change(model, self.output)
        clean = open_inputs(model, self.data, limit=self.limit, **self.reading.data_options())
        shown = not self.printing.quiet
        finding = find_backdoor(model, clean, steps=self.steps, progress=shown)
        names = dict(enumerate(clean.label_names))
        verdict, plan, judgement = finding.verdict(names), None, None
        if self.output is not None:
            plan, judgement = self._removed(model, clean, finding, verdict)
        document = self._document(finding, names, verdict, plan, judgement)
        present({**document, "backdoor": _facts(finding, names)}, self.printing, page)
        return int(judgement is not None and bool(judgement.no_effect) and not self.force)

    def _removed(
        self, model: "Model", clean: "ItemInputs", finding: "BackdoorFinding", verdict: str
    ) -> "tuple[RewritePlan, Judgement]":
        """Write a model without the trigger; return the plan and how it was judged."""
        from sonde.edit import Triggered, remove_backdoor
        from sonde.run.judging.acts import plan_act, plan_controls
        from sonde.run.judging.judge import JudgedSide, judge
        from sonde.weights import save_edited

        assert self.output is not None
        if not finding.likely and not self.force:
            raise InputError(
                f"--remove: {verdict} Pass --force to unlearn that patch all the same."
            )
        shown = not self.printing.quiet
        plan = remove_backdoor(model, clean, finding, progress=shown)
        judgement = judge(
            model,
            plan_act(model, plan),
            [JudgedSide("with the trigger", Triggered(clean, finding), 1)],
            clean,
            controls=plan_controls(model, plan),
            progress=shown,
        )
        if judgement.too_large and not self.force:
            raise InputError(f"this edit is too large: {judgement.too_large}. Pass --force.")
        if not is_idle(judgement, self.force):
            save_edited(model, plan, self.output, name=self.model)
        return plan, judgement

    def _document(
        self,
        finding: "BackdoorFinding",
        names: dict[int, str],
        verdict: str,
        plan: "RewritePlan | None",
        judgement: "Judgement | None",
    ) -> dict[str, Any]:
        from sonde.run.judging.edit_document import EditTable, edit_document

        sizes = finding.size.tolist()
        order = sorted(range(len(sizes)), key=sizes.__getitem__)
        found = tuple((names.get(c, str(c)), round(sizes[c], 4)) for c in order)
        tables = [
            EditTable("Share of the image under the smallest patch", ("class", "share"), found),
            EditTable(
                "The trigger: # bright, o dark, . not covered",
                ("line",),
                tuple((line,) for line in finding.drawing()),
            ),
        ]
        if plan is not None:
            figures = tuple((name, value) for name, value in plan.figures.items())
            title = "Share of images that the trigger turns, and of right answers"
            tables.insert(0, EditTable(title, ("what", "share"), figures))
        return edit_document(
            "find-backdoor",
            judgement,
            model=self.model,
            method="find_backdoor" if plan is None else plan.method,
            places=[] if plan is None else list(plan.changes),
            target="images with the trigger told right",
            neutral=self.data,
            output=str(self.output) if self.output is not None and self.output.is_dir() else None,
            tables=tables,
            notes=[verdict, "Triggers that cover the image, or bend it, are not found."],
        )


def _facts(finding: "BackdoorFinding", names: dict[int, str]) -> dict[str, Any]:
    return {
        "likely": finding.likely,
        "target": names.get(finding.target, str(finding.target)),
        "ratio": finding.ratio,
        "success": finding.success,
        "accuracy": finding.accuracy,
    }
