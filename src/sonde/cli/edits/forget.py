"""``sonde edit forget``: as if some examples had never been in the training data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sonde.cli._presenting import present
from sonde.cli.edits._acting import checked_page, is_idle
from sonde.cli.options import DataReading, DeviceWord, ModelWord, Printing, named
from sonde.core.errors import InputError

if TYPE_CHECKING:
    from sonde.core.inputs import Model
    from sonde.data import ItemInputs
    from sonde.edit import Forgotten
    from sonde.weights import Rewrite

JUDGED = 128
"""Most examples of a side that the change is judged by."""


@dataclass(frozen=True)
class ForgetData:
    """What is forgotten and what is kept."""

    forget: Annotated[str, named("DATA", "examples to forget, with their labels or texts")]
    retain: Annotated[
        str | None, named("DATA", "the rest of the training data (with --of-class: of --forget)")
    ] = None
    held: Annotated[
        str | None, named("DATA", "examples that the model never saw, for the membership attack")
    ] = None
    of_class: Annotated[
        str | None, named("NAME", "forget this class of --forget, and keep the others of --retain")
    ] = None
    limit: Annotated[int | None, named("N", "read only the first N examples of each")] = None
    device: DeviceWord = "auto"
    reading: DataReading = field(default_factory=DataReading)

    @property
    def kept(self) -> str:
        """The data that are kept, as the user named them."""
        return self.retain or self.forget

    def check(self) -> None:
        """Refuse data to be forgotten without data to be kept."""
        if self.retain is None and self.of_class is None:
            raise InputError(
                "edit forget: expected --retain, the training data to be kept, got none. Name "
                "them, or a class of --forget by --of-class."
            )

    def sides(self, model: "Model") -> dict[str, "ItemInputs"]:
        """Return the data by their part: forget, retain, and held if it was named."""
        from sonde.data import open_inputs

        words = {"forget": self.forget, "retain": self.kept, "held": self.held}
        found: dict[str, ItemInputs] = {}
        for part, word in words.items():
            if word is None:
                continue
            split = "test" if part == "held" else "train"
            data = open_inputs(
                model,
                word,
                split=split,
                limit=self.limit,
                **self.reading.data_options(),
            )
            if self.of_class is not None:
                data = data.of_class(self.of_class, without=part == "retain")
            found[part] = data
            if not len(data):
                raise InputError(f"--{part}: expected examples, got none. Give it other data.")
        return found


@dataclass(frozen=True)
class Forget:
    """Make a model as if it had never seen some of its training data.

    random, preference and ascent train a copy: wrong answers for these examples, answers less
    likely than before, or a higher loss, and the old answers for the rest. dampen trains nothing:
    it shrinks the weights that matter to these examples far more than to all, which may change
    nothing. The report has what became of each side and, with --held, whether an attacker can
    still tell who was in the training data.

    Differs: forgets examples; erase takes a concept out of the states, ablate a behaviour.

    Example: sonde edit forget sonde:digits --forget sonde:digits --of-class 3 -o NEW
    """

    model: ModelWord
    data: ForgetData
    output: Annotated[
        Path, tyro.conf.arg(aliases=["-o"], metavar="NEW", help="folder for the changed model")
    ]
    method: Annotated[
        Literal["random", "preference", "ascent", "dampen"],
        tyro.conf.arg(help="how it is made to forget"),
    ] = "random"
    alpha: Annotated[
        float | None, named("A", "dampen: how much more a weight must matter to --forget")
    ] = None
    retrain: Annotated[
        bool, tyro.conf.arg(help="train a model anew without --forget, to compare with (slow)")
    ] = False
    report: Annotated[
        Path | None, named("FILE", "page to write, .html or .json (default: NEW.html)")
    ] = None
    force: Annotated[
        bool, tyro.conf.arg(help="write it even where it is too large, or does no more than chance")
    ] = False
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Plan, judge, write, and say what became of the examples."""
        from sonde.data import load
        from sonde.edit import Retrain, forgotten
        from sonde.weights import save_edited
        from sonde.weights.factory_folder import check_change

        page, rule = checked_page(self.report, self.output), self._rule()
        self.data.check()
        model = load(self.model, device=self.data.device)
        check_change(model, self.output)
        sides = self.data.sides(model)
        plan = rule.plan(model, sides)
        judgement = self._judged(model, plan, sides)
        if judgement.too_large and not self.force:
            raise InputError(
                f"this edit is too large: {judgement.too_large}. Take another --method, a larger "
                "--alpha, or --force."
            )
        if is_idle(judgement, self.force):
            return 1
        anew = Retrain().plan(model, sides).fold(model) if self.retrain else None
        found = forgotten(model, plan.fold(model), **sides, retrained=anew)
        saved = save_edited(model, plan, self.output, name=self.model)
        document = self._document(judgement, found, saved.tensors, plan.method)
        present({**document, "forgotten": found.json()}, self.printing, page)
        return 0

    def _rule(self) -> "Rewrite":
        from sonde.edit import GradientAscent, NegPreference, RandomLabel, SelectiveDampening

        if self.method == "dampen":
            return SelectiveDampening(self.alpha)
        if self.alpha is not None:
            raise InputError(f"--alpha: {self.method} does not read it.")
        trained = {"ascent": GradientAscent, "random": RandomLabel, "preference": NegPreference}
        return trained[self.method]()

    def _judged(self, model: "Model", plan: Any, sides: dict[str, "ItemInputs"]) -> Any:
        from sonde.run.judging.acts import plan_act, plan_controls
        from sonde.run.judging.judge import JudgedSide, judge

        return judge(
            model,
            plan_act(model, plan),
            [JudgedSide("forget", sides["forget"].first(JUDGED), -1)],
            sides["retain"].first(JUDGED),
            controls=plan_controls(model, plan),
            progress=not self.printing.quiet,
        )

    def _document(
        self, judgement: Any, found: "Forgotten", tensors: Any, method: str
    ) -> dict[str, Any]:
        from sonde.run.judging.edit_document import edit_document

        only = "" if self.data.of_class is None else f", class {self.data.of_class}"
        notes = [] if found.attack else ["Without --held nobody can tell how an attacker fares."]
        if found.retrained is None:
            notes.append("--retrain shows a model that never saw the examples, beside these.")
        return edit_document(
            "forget",
            judgement,
            model=self.model,
            method=method,
            places=list(tensors),
            target=f"{self.data.forget}{only} less likely",
            neutral=self.data.kept,
            output=str(self.output),
            tables=tables_of(found),
            notes=notes,
        )


def tables_of(found: "Forgotten") -> list[Any]:
    """Return what became of each part of the data, and of the attacker, as tables of a report."""
    from sonde.run.judging.edit_document import EditTable

    models = {"before": found.before, "after": found.after, "trained anew": found.retrained}
    shown = {name: parts for name, parts in models.items() if parts is not None}
    columns = ("model", *(f"{what}, {part}" for part in found.after for what in ("right", "nats")))
    rows = tuple(
        (name, *(value for part in parts.values() for value in (part.accuracy, part.loss)))
        for name, parts in shown.items()
    )
    tables = [EditTable("Share of right answers and mean loss of each part", columns, rows)]
    attacks = {
        "before": found.attack_before,
        "after": found.attack,
        "trained anew": found.attack_retrained,
    }
    told = tuple((n, float(m.value), m.low, m.high) for n, m in attacks.items() if m is not None)
    if told:
        title = "Membership attack by low loss, forgotten against unseen examples; .5 = cannot tell"
        tables.append(EditTable(title, ("model", "AUROC", "low", "high"), told))
    return tables
