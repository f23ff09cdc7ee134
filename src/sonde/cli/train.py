"""``sonde train``: train losses or layers at sites of a model, against training without them."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sonde.cli._presenting import check_page, present, with_page
from sonde.cli._table import table
from sonde.cli.console import say, say_json
from sonde.cli.options import DataReading, DataWord, ModelWord, Printing, listed, named
from sonde.core.errors import InputError

if TYPE_CHECKING:
    from sonde.core.inputs import Model
    from sonde.data.inputs import ItemInputs
    from sonde.run.fine_tuning.arms import Arm, Recipe


@dataclass(frozen=True)
class Train:
    """Fine-tune a model with losses or new layers at its sites, and say whether they helped.

    The model is trained on its task (labels, or next tokens) with the losses, and a second time
    without the losses: same rows, order and steps. The page shows separately whether the losses
    fell and whether the task gained, on examples that were not trained on. With --insert only the
    new layers are trained, beside the model as it was, unless --scope names more. If it was
    stopped, the same command goes on where it was. `sonde train --list` says what each loss and
    layer needs and is for. If MODEL is package.module:factory, open the new model as
    package.module:factory@NEW.

    Example: sonde train sonde:digits sonde:digits/train --terms rate_reduction --sites blocks.1
    -o NEW

    More: sonde train MODEL DATA --insert unit_gate@blocks.1 -o NEW
    """

    model: ModelWord = ""
    data: DataWord = ""
    output: Annotated[
        Path | None,
        tyro.conf.arg(
            aliases=["-o"],
            metavar="NEW",
            help="folder for the trained model",
            help_behavior_hint="",
        ),
    ] = None
    terms: Annotated[
        str | None, named("LOSS,...", "losses at sites, as rate_reduction or align(distance='mse')")
    ] = None
    sites: Annotated[
        tuple[str, ...],
        named("SITE ...", "where each loss reads, or one site for all; SITE+SITE for two"),
    ] = ()
    insert: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        named(
            "LAYER@SITE",
            "a new layer behind a module, as adapter(width=8)@blocks.3; may be repeated",
        ),
    ] = ()
    weight: Annotated[
        str, named("W,...", "weight of the losses beside the task, or one for each: 0.1,0.5")
    ] = "0.1"
    teacher: Annotated[
        str | None,
        named(
            "MODEL", "a model whose states are learned from; ema: an average of the model itself"
        ),
    ] = None
    scope: Annotated[
        str | None,
        named(
            "WORD",
            "parameters that move: all (default), norms, top:N (the last N blocks), or low-rank:N "
            "(adapters of rank N beside linear layers, by peft); with --insert by default the new "
            "layers alone",
        ),
    ] = None
    epochs: Annotated[int, tyro.conf.arg(help="passes over the examples")] = 3
    rate: Annotated[float, tyro.conf.arg(help="rate of Adam")] = 1e-4
    batch_size: Annotated[int, tyro.conf.arg(help="examples of a step")] = 32
    seed: Annotated[int, tyro.conf.arg(help="draws the order of the examples")] = 0
    seeds: Annotated[int, tyro.conf.arg(help="how many trainings of each arm")] = 1
    alone: Annotated[bool, tyro.conf.arg(help="leave out the training beside it")] = False
    limit: Annotated[int | None, named("N", "examples to train on at most (default: all)")] = None
    held: Annotated[int, named("N", "other examples for the figures (default: 256)")] = 256
    report: Annotated[
        Path | None, named("FILE", "page to write, .html or .json (default: NEW.html)")
    ] = None
    list_losses: Annotated[
        bool, tyro.conf.arg(name="list", help="print what each loss and layer needs and is for")
    ] = False
    fresh: Annotated[
        bool, tyro.conf.arg(help="drop the checkpoints of another training beside NEW")
    ] = False
    device: Annotated[str, tyro.conf.arg(help="auto, cpu, cuda or mps")] = "auto"
    reading: DataReading = field(default_factory=DataReading)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Train both arms, compare, write and tell."""
        if self.list_losses:
            return self._list()
        output, page = self._checked()
        from sonde.data import load
        from sonde.run.fine_tuning.document import train_document
        from sonde.run.fine_tuning.layers import asked_layers, check_places, without_layers
        from sonde.run.passes.directory import run_directory
        from sonde.weights.factory_folder import check_change
        from sonde.weights.folder import check_output
        from sonde.weights.tuning import require_truth

        asked = asked_layers(self.insert)
        check_output(output)
        model = load(self.model, device=self.device)
        check_change(without_layers(model), output)
        check_places(model, asked)
        ours, held = self._examples(model)
        require_truth("sonde train", model, examples=ours.first(64), held=held.first(64))
        recipe, kept = self._recipe(), run_directory(output)
        if self.fresh:
            _forget(kept)
        pairs = self._pairs(model, ours, asked, recipe, kept)
        document = train_document(
            model,
            held,
            pairs,
            recipe,
            names=self._names(output),
            n_trained=len(ours),
        )
        patch = self._saved(model, pairs[0][0].module, output, document["gain"]["loss"]["value"])
        wrote = f"{output}, {page}, and {patch} to take it back"
        with with_page(output):
            present(document, self.printing, page, wrote)
        _forget(kept)
        return 0

    def _pairs(
        self, model: "Model", ours: "ItemInputs", asked: Any, recipe: "Recipe", kept: Path
    ) -> "list[tuple[Arm, Arm | None]]":
        """Return for each seed the arm with losses and layers, and the arm without."""
        from sonde.data import load
        from sonde.run.fine_tuning.arms import LAYERS, train_arm
        from sonde.run.fine_tuning.layers import with_asked
        from sonde.tap.training.terms import EMA

        teacher: Any = self.teacher
        if teacher not in (None, EMA):
            teacher = load(teacher, device=self.device)
        losses = self._losses(has_teacher=teacher is not None)
        is_alone = self.alone or recipe.scope == LAYERS  # without layers nothing would be trained

        def trained(name: str, seed: int) -> "Arm":
            is_with = name == "with"
            return train_arm(
                with_asked(model, asked, ours, seed) if is_with and asked else model,
                ours,
                losses if is_with else {},
                replace(recipe, seed=seed, scope=recipe.scope if is_with else self.scope or "all"),
                teacher=teacher,
                checkpoint=kept / f"{name}-{seed}.pt",
                label=f"train {name} {self._what()}" + (f", seed {seed}" if self.seeds > 1 else ""),
                progress=not self.printing.quiet,
            )

        return [
            (trained("with", n), None if is_alone else trained("without", n))
            for n in range(self.seed, self.seed + self.seeds)
        ]

    def _saved(self, model: "Model", new: Any, output: Path, loss: float) -> Path:
        """Write the trained model with its layers inside, and return its patch."""
        from sonde.layers import inserted_layers, layer_files
        from sonde.run.fine_tuning.layers import without_layers
        from sonde.weights import save_edited
        from sonde.weights.factory_folder import source_folder
        from sonde.weights.tuning import plan_of

        base = without_layers(model)
        plan = plan_of(base, without_layers(new), "train", loss=loss)
        layers = layer_files(new) if inserted_layers(new) else None
        with source_folder(base) as source:
            return save_edited(source, plan, output, name=self.model, layers=layers).patch

    def _recipe(self) -> "Recipe":
        """Return how the arm with losses and layers is trained: new layers always move."""
        from sonde.run.fine_tuning.arms import LAYERS, Recipe
        from sonde.run.fine_tuning.losses import weights_of

        scope = self.scope or (LAYERS if self.insert else "all")
        if self.insert and scope != LAYERS:
            scope += f"+{LAYERS}"
        n_losses = len(self._losses(has_teacher=self.teacher is not None)) if self.terms else 1
        weight = weights_of(self.weight, n_losses)
        return Recipe(self.epochs, self.rate, weight, scope, self.seed)

    def _losses(self, *, has_teacher: bool) -> dict[Any, Any]:
        """Return the losses by their sites."""
        from sonde.engine.steps import seeded
        from sonde.run.fine_tuning.losses import attached

        if not self.terms:
            return {}
        with seeded(self.seed):  # of projectors and other parts that begin with random weights
            return attached(self.terms, listed(self.sites), has_teacher=has_teacher)

    def _what(self) -> str:
        """Return what the two trainings differ in."""
        return " and ".join(["layers"] * bool(self.insert) + ["losses"] * bool(self.terms))

    def _names(self, output: Path) -> dict[str, Any]:
        """Return what was typed, for the page."""
        return {
            "model": self.model,
            "data": self.data,
            "terms_typed": self.terms or "",
            "sites_typed": list(listed(self.sites)),
            "inserted": list(self.insert),
            "output": str(output),
        }

    def _checked(self) -> tuple[Path, Path]:
        """Return where model and page go, or say which word is missing or wrong."""
        if not self.model or not self.data:
            raise InputError("sonde train: expected MODEL DATA. See sonde train --help.")
        if self.output is None:
            raise InputError("sonde train: expected -o NEW, the folder for the trained model.")
        if bool(self.terms) != bool(self.sites) or not (self.terms or self.insert):
            raise InputError(
                "sonde train: expected --terms and --sites, as --terms rate_reduction --sites "
                "blocks.3, or --insert unit_gate@blocks.3. `sonde train --list` says which losses "
                "and layers there are."
            )
        for name in ("epochs", "rate", "batch_size", "seeds", "held"):
            if not getattr(self, name) > 0:
                word = name.replace("_", "-")
                raise InputError(f"--{word}: expected more than 0, got {getattr(self, name)}.")
        page = self.report or self.output.absolute().with_name(self.output.name + ".html")
        check_page(page, flag="--report")
        return self.output, page

    def _examples(self, model: "Model") -> "tuple[ItemInputs, ItemInputs]":
        """Return the examples to train on and those for the figures."""
        from sonde.data import open_inputs
        from sonde.run.compressing.choosing import chosen_parts

        options = {**self.reading.data_options(), "batch_size": self.batch_size}
        n = None if self.limit is None else 8 * (self.limit + self.held)
        inputs = open_inputs(model, self.data, split="train", limit=n, **options)
        ours = max(1, len(inputs) - self.held) if self.limit is None else self.limit
        return chosen_parts(inputs, ours, self.held)

    def _list(self) -> int:
        from sonde.run.fine_tuning.layers import listed_layers
        from sonde.run.fine_tuning.losses import listed

        losses, layers = listed(), listed_layers()
        if self.printing.json:
            each = [("loss", x) for x in losses] + [("layer", x) for x in layers]
            say_json([{kind: x.word, "needs": list(x.needs), "for": x.purpose} for kind, x in each])
            return 0
        rows = [
            (x.word, ", ".join(x.needs) + ("" if x.is_usable else " (Python only)"), x.purpose)
            for x in losses
        ]
        say(table(("loss", "needs", "what it is for"), rows))
        others = [(x.word, ", ".join(x.needs), x.purpose) for x in layers]
        say("")
        say(table(("layer to insert", "needs", "what it does"), others))
        return 0


def _forget(kept: Path) -> None:
    """Remove the checkpoints of a training that is done."""
    import shutil

    shutil.rmtree(kept, ignore_errors=True)
