"""``sonde train``: fine-tune a model with losses at its sites, beside the same without them."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sonde.cli._presenting import check_page, present, with_page
from sonde.cli._table import table
from sonde.cli.console import say, say_json
from sonde.cli.options import DataWord, ModelWord, Printing, named
from sonde.core.errors import InputError

if TYPE_CHECKING:
    from sonde.core.inputs import Model
    from sonde.data.inputs import ItemInputs


@dataclass(frozen=True)
class Train:
    """Fine-tune a model with losses on its hidden states, and say whether they helped.

    The model is trained on its task (labels, or next tokens) with the losses, and beside it in the
    same way without them: same rows, order and steps. The page tells apart whether the losses fell
    and whether the task gained, on examples that trained nothing. Stopped, the same command goes on
    where it was. `sonde train --list` says what each loss needs and is for. What is made of
    package.module:factory is opened by package.module:factory@NEW.

    Example: sonde train sonde:digits sonde:digits/train --terms rate_reduction --sites blocks.1
    -o NEW
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
    weight: Annotated[float, tyro.conf.arg(help="weight of each loss beside the task")] = 0.1
    teacher: Annotated[
        str | None,
        named(
            "MODEL", "a model whose states are learned from; ema: an average of the model itself"
        ),
    ] = None
    scope: Annotated[
        str,
        tyro.conf.arg(help="parameters that move: all, norms, or top:N (the last N blocks)"),
    ] = "all"
    epochs: Annotated[int, tyro.conf.arg(help="passes over the examples")] = 3
    rate: Annotated[float, tyro.conf.arg(help="rate of Adam")] = 1e-4
    batch_size: Annotated[int, tyro.conf.arg(help="examples of a step")] = 32
    seed: Annotated[int, tyro.conf.arg(help="draws the order of the examples")] = 0
    seeds: Annotated[int, tyro.conf.arg(help="how many trainings of each arm")] = 1
    alone: Annotated[bool, tyro.conf.arg(help="leave out the training without losses")] = False
    limit: Annotated[int | None, named("N", "examples to train on at most (default: all)")] = None
    held: Annotated[int, named("N", "other examples for the figures (default: 256)")] = 256
    report: Annotated[
        Path | None, named("FILE", "page to write, .html or .json (default: NEW.html)")
    ] = None
    list_losses: Annotated[
        bool, tyro.conf.arg(name="list", help="print what each loss needs and is for")
    ] = False
    text_column: Annotated[str | None, named("NAME", "column of the text")] = None
    label_column: Annotated[str | None, named("NAME", "column of the label")] = None
    device: Annotated[str, tyro.conf.arg(help="auto, cpu, cuda or mps")] = "auto"
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Train both arms, compare, write and tell."""
        if self.list_losses:
            return self._list()
        output, page = self._checked()
        from sonde.data import load
        from sonde.run.fine_tuning.arms import Recipe, train_arm
        from sonde.run.fine_tuning.document import train_document
        from sonde.run.fine_tuning.losses import attached
        from sonde.run.passes.directory import run_directory
        from sonde.tap.training.terms import EMA
        from sonde.weights import save_edited
        from sonde.weights.factory_folder import source_folder
        from sonde.weights.folder import ModelFolder, check_output
        from sonde.weights.tuning import plan_of, require_truth

        model = load(self.model, device=self.device)
        with source_folder(model) as source:
            check_output(output, ModelFolder.open(source).path)
        teacher = self.teacher
        if teacher not in (None, EMA):
            teacher = load(teacher, device=self.device)
        losses = attached(self.terms or "", self.sites, has_teacher=teacher is not None)
        ours, held = self._examples(model)
        require_truth("sonde train", model, examples=ours.first(64), held=held.first(64))
        recipe = Recipe(self.epochs, self.rate, self.weight, self.scope, self.seed)
        kept = run_directory(output)

        def trained(name: str, own: Any, seed: int) -> Any:
            return train_arm(
                model,
                ours,
                own,
                replace(recipe, seed=seed),
                teacher=teacher,
                checkpoint=kept / f"{name}-{seed}.pt",
                label=f"train {name} losses" + (f", seed {seed}" if self.seeds > 1 else ""),
                progress=not self.printing.quiet,
            )

        pairs = [
            (trained("with", losses, n), None if self.alone else trained("without", {}, n))
            for n in range(self.seed, self.seed + self.seeds)
        ]
        document = train_document(
            model,
            held,
            pairs,
            recipe,
            names=self._names(output),
            n_trained=len(ours),
        )
        plan = plan_of(model, pairs[0][0].module, "train", loss=document["gain"]["loss"]["value"])
        with source_folder(model) as source:
            saved = save_edited(source, plan, output, name=self.model)
        wrote = f"{output}, {page}, and {saved.patch} to take it back"
        with with_page(output):
            present(document, self.printing, page, wrote)
        _forget(kept)
        return 0

    def _names(self, output: Path) -> dict[str, Any]:
        """Return what was typed, for the page."""
        return {
            "model": self.model,
            "data": self.data,
            "terms_typed": self.terms or "",
            "sites_typed": list(self.sites),
            "output": str(output),
        }

    def _checked(self) -> tuple[Path, Path]:
        """Return where model and page go, or say which word is missing or wrong."""
        if not self.model or not self.data:
            raise InputError("sonde train: expected MODEL DATA. See sonde train --help.")
        if self.output is None:
            raise InputError("sonde train: expected -o NEW, the folder for the trained model.")
        if not self.terms or not self.sites:
            raise InputError(
                "sonde train: expected --terms and --sites, as --terms rate_reduction --sites "
                "blocks.3. `sonde train --list` says which losses there are."
            )
        for name in ("epochs", "rate", "batch_size", "seeds", "held", "weight"):
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

        options: dict[str, Any] = {
            "text_column": self.text_column,
            "label_column": self.label_column,
            "batch_size": self.batch_size,
        }
        n = None if self.limit is None else 8 * (self.limit + self.held)
        inputs = open_inputs(model, self.data, split="train", limit=n, **options)
        ours = max(1, len(inputs) - self.held) if self.limit is None else self.limit
        return chosen_parts(inputs, ours, self.held)

    def _list(self) -> int:
        from sonde.run.fine_tuning.losses import listed

        found = listed()
        if self.printing.json:
            say_json([{"loss": x.word, "needs": list(x.needs), "for": x.purpose} for x in found])
            return 0
        rows = [
            (x.word, ", ".join(x.needs) + ("" if x.is_usable else " (Python only)"), x.purpose)
            for x in found
        ]
        say(table(("loss", "needs", "what it is for"), rows))
        return 0


def _forget(kept: Path) -> None:
    """Remove the checkpoints of a training that is done."""
    import shutil

    shutil.rmtree(kept, ignore_errors=True)
