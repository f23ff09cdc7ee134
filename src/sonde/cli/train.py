"""``sonde train``: train losses or layers at sites of a model, compared with no change."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from sonde.cli._presenting import check_page, present
from sonde.cli._table import table
from sonde.cli.console import note, say, say_json
from sonde.cli.options import DataReading, DataWord, ModelWord, Printing, listed, named
from sonde.core.errors import InputError


@dataclass(frozen=True)
class Train:
    """Fine-tune a model with losses or new layers at its sites, and report whether they helped.

    The model is trained on its task (labels, or next tokens) with the losses, and a second time
    without the losses: same rows, order and steps. The page shows separately whether the losses
    fell and whether the task gained, on examples that were not trained on. With --insert only the
    new layers are trained, unless --scope names more; the control run trains equally many of the
    model's last parameters instead. The same command continues an interrupted run. `sonde train
    --list` prints the purpose and inputs of each loss and layer. If MODEL is
    package.module:factory, open the new model as package.module:factory@NEW.

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
        str | None,
        named("LOSS,...", "losses at sites, e.g. rate_reduction or align(distance='mse')"),
    ] = None
    sites: Annotated[
        tuple[str, ...],
        named(
            "SITE ...",
            "site of each loss, or one site for all losses; SITE+SITE for a loss of two sites",
        ),
    ] = ()
    insert: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        named(
            "LAYER@SITE",
            "insert a new layer after a module, e.g. adapter(width=8)@blocks.3; may be repeated",
        ),
    ] = ()
    weight: Annotated[
        str,
        named(
            "W,...", "weight of the losses relative to the task, or one weight per loss: 0.1,0.5"
        ),
    ] = "0.1"
    teacher: Annotated[
        str | None,
        named(
            "MODEL",
            "teacher model for losses that need one; ema: a moving average of the model itself",
        ),
    ] = None
    scope: Annotated[
        str | None,
        named(
            "WORD",
            "parameters that are trained: all (default), norms, top:N (the last N blocks), "
            "last:N (the last tensors, N numbers or more), or low-rank:N (adapters of rank N "
            "beside linear layers, by peft); with --insert by default the new layers alone",
        ),
    ] = None
    epochs: Annotated[int, tyro.conf.arg(help="passes over the examples")] = 3
    rate: Annotated[float, tyro.conf.arg(help="learning rate of Adam")] = 1e-4
    batch_size: Annotated[int, tyro.conf.arg(help="examples of a step")] = 32
    seed: Annotated[int, tyro.conf.arg(help="seed of the order of examples")] = 0
    seeds: Annotated[
        int, tyro.conf.arg(help="number of training runs with and without the losses")
    ] = 1
    alone: Annotated[
        bool, tyro.conf.arg(help="skip the control training run without the losses")
    ] = False
    limit: Annotated[
        int | None, named("N", "largest number of training examples (default: all)")
    ] = None
    held: Annotated[
        int, named("N", "number of held-out examples for evaluation (default: 256)")
    ] = 256
    report: Annotated[
        Path | None, named("FILE", "page to write, .html or .json (default: NEW.html)")
    ] = None
    list_losses: Annotated[
        bool, tyro.conf.arg(name="list", help="print the purpose and inputs of each loss and layer")
    ] = False
    fresh: Annotated[
        bool, tyro.conf.arg(help="delete the checkpoints of another training run beside NEW")
    ] = False
    device: Annotated[str, tyro.conf.arg(help="auto, cpu, cuda or mps")] = "auto"
    reading: DataReading = field(default_factory=DataReading)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Train with and without the losses, compare, write and report."""
        if self.list_losses:
            return self._list()
        output, page = self._checked()
        from sonde.run.training.train_model import train_model
        from sonde.weights.folder import removed_on_error

        trained = train_model(
            self.model,
            self.data,
            output,
            **self._typed(),
            keep_checkpoints=True,
            progress=not self.printing.quiet,
            **self.reading.data_options(),
        )
        wrote = f"{output}, {page}, and {trained.patch}, which undoes the change"
        with removed_on_error(output):
            for line in trained.notes:
                note(line)
            present(trained.document, self.printing, page, wrote)
        trained.forget()
        return 0

    def _typed(self) -> dict[str, Any]:
        """Return the typed options of the training run."""
        losses = ("terms", "sites", "insert", "weight", "teacher", "scope")
        steps = ("epochs", "rate", "batch_size", "seed", "seeds", "alone", "limit", "held")
        typed = {name: getattr(self, name) for name in (*losses, *steps, "fresh", "device")}
        return typed | {"sites": listed(self.sites)}

    def _checked(self) -> tuple[Path, Path]:
        """Return the paths of model and page; raise if an argument is missing or wrong."""
        if not self.model or not self.data:
            raise InputError("sonde train: expected MODEL DATA. See sonde train --help.")
        if self.output is None:
            raise InputError("sonde train: expected -o NEW, the folder for the trained model.")
        from sonde.run.training.train_model import check_words

        names = ("epochs", "rate", "batch_size", "seeds", "held", "limit")
        numbers = {name: getattr(self, name) for name in names}
        check_words(self.terms, self.sites, self.insert, **numbers)
        page = self.report or self.output.absolute().with_name(self.output.name + ".html")
        check_page(page, flag="--report")
        return self.output, page

    def _list(self) -> int:
        from sonde.run.training.layers import listed_layers
        from sonde.run.training.losses import listed

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
