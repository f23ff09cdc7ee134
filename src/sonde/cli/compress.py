"""``sonde compress``: a smaller model, and what that did to its answers."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from sonde.cli.console import note, say, say_json
from sonde.cli.options import DataWord, ModelWord, Printing, named
from sonde.core.errors import InputError

if TYPE_CHECKING:
    from sonde.core.inputs import Model
    from sonde.data.inputs import ItemInputs
    from sonde.run.compressing.settings import Setting, Trial
    from sonde.weights import Rewrite

UNITS = {"": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
MOST_LISTED, MOST_FITTED = 1024, 512
"""Items that are listed, and examples that calibrate, if --limit is not given."""


@dataclass(frozen=True)
class Compress:
    """Write a model with smaller weights, and say what it costs.

    Linear layers are rounded to a few bits, with a scale for each group of weights; embeddings,
    norms and convolutions stay. Some examples of DATA, drawn by the hash of their ids, say which
    errors matter, others say what changed. --budget or --max-kl seek bits and groups themselves.
    `sonde compress undo SMALL -o OLD` gives every file back while SMALL.patch lies beside it.

    Example: sonde compress sonde:stdlib sonde:stdlib/train --to 4bit --limit 16 --held 8 -o SMALL
    """

    model: ModelWord
    data: DataWord
    output: Annotated[
        Path, tyro.conf.arg(aliases=["-o"], metavar="SMALL", help="folder for the smaller model")
    ]
    to: Annotated[str | None, named("SIZE", "bits of a weight: 2bit to 8bit (default: 4bit)")] = (
        None
    )
    budget: Annotated[
        str | None, named("SIZE", "most bytes of weight files, as 100MiB; seeks bits and group")
    ] = None
    max_kl: Annotated[
        float | None, named("NATS", "most divergence of answers; seeks the smallest such model")
    ] = None
    method: Annotated[
        Literal["gptq", "rtn"],
        tyro.conf.arg(help="gptq spreads errors by what layers read, rtn rounds to the nearest"),
    ] = "gptq"
    group: Annotated[int | None, named("N", "weights that share a scale (default: 32)")] = None
    limit: Annotated[
        int | None,
        named("N", "examples to calibrate on (default: 8 rows for each input of a layer)"),
    ] = None
    held: Annotated[int, named("N", "other examples to compare on (default: 64)")] = 64
    report: Annotated[
        Path | None, named("FILE", "page to write, .html or .json (default: SMALL.html)")
    ] = None
    text_column: Annotated[str | None, named("NAME", "column of the text")] = None
    label_column: Annotated[str | None, named("NAME", "column of the label")] = None
    device: Annotated[str, tyro.conf.arg(help="auto, cpu, cuda or mps")] = "auto"
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Plan, compare, write and tell."""
        from sonde.data import load
        from sonde.report.compress import save_compress
        from sonde.report.compress_terminal import compress_to_text, compress_verdict
        from sonde.run.compressing.document import compress_document
        from sonde.run.compressing.inside import inside
        from sonde.run.compressing.timing import speeds
        from sonde.weights import save_edited
        from sonde.weights.folder import check_output, folder_of, weight_bytes

        bits, budget, page = self._bits(), self._budget(), self._page()
        model = load(self.model, device=self.device)
        check_output(self.output, folder_of(model))
        ours, held = self._examples(model)
        best, tried = self._best(model, ours, held, bits, budget)
        new = best.plan.fold(model)
        sites, times = inside(model, new, held), speeds(model, new, held)
        saved = save_edited(model, best.plan, self.output, name=self.model)
        document = compress_document(
            model,
            new,
            best.plan,
            name=self.model,
            data=self.data,
            output=self.output,
            bytes_on_disk=[weight_bytes(at) for at in (folder_of(model), self.output)],
            fidelity=best.fidelity,
            sites=sites,
            times=times,
            rows={"calibrated_on": self._n_fitted(ours), "compared_on": len(held)},
            tried=[trial.json() for trial in tried],
        )
        save_compress(document, page)
        if self.printing.json:
            say_json(document)
        else:
            say((compress_verdict if self.printing.quiet else compress_to_text)(document))
        note(f"wrote {self.output}, {page}, and {saved.patch} to take it back")
        return 0

    def _bits(self) -> int | None:
        """Return the bits of a weight, or None if they are sought."""
        if self.budget is not None or self.max_kl is not None:
            if self.to is not None or self.group is not None:
                raise InputError(
                    "--budget and --max-kl seek bits and group: leave out --to and --group."
                )
            return None
        told = re.fullmatch(r"([2-8])[ -]?bits?", (self.to or "4bit").strip())
        if told is None:
            raise InputError(f"--to: expected 2bit to 8bit, got {self.to!r}.")
        return int(told[1])

    def _budget(self) -> int | None:
        if self.budget is None:
            return None
        told = re.fullmatch(r"([0-9.]+) ?([KMG]I?B)?", self.budget.strip().upper())
        if told is None or told[1].count(".") > 1 or told[1] == ".":
            raise InputError(f"--budget: expected bytes as 100MiB or 2GB, got {self.budget!r}.")
        return math.floor(float(told[1]) * UNITS[told[2] or ""])

    def _page(self) -> Path:
        page = self.report or self.output.absolute().with_name(self.output.name + ".html")
        if page.suffix.lower() not in (".html", ".htm", ".json"):
            raise InputError(f"--report: expected a name that ends in .html or .json, got {page}.")
        return page

    def _n_fitted(self, ours: "ItemInputs") -> int:
        return 0 if self.method == "rtn" else len(ours)

    def _examples(self, model: "Model") -> "tuple[ItemInputs, ItemInputs]":
        """Return the examples to calibrate on and those to compare on."""
        from sonde.data import open_inputs
        from sonde.run.compressing.choosing import chosen_parts, enough_examples

        options: dict[str, Any] = {
            "text_column": self.text_column,
            "label_column": self.label_column,
        }
        n = MOST_LISTED if self.limit is None else 8 * (self.limit + self.held)
        inputs = open_inputs(model, self.data, split="train", limit=n, **options)
        if self.limit is not None and len(inputs) <= self.limit:
            raise InputError(
                f"sonde compress: expected more than {self.limit} examples (--limit to calibrate "
                f"on, then some to compare on), got {len(inputs)}. Lower --limit."
            )
        limit = self.limit or min(MOST_FITTED, enough_examples(model, inputs))
        return chosen_parts(inputs, limit, self.held)

    def _best(
        self,
        model: "Model",
        ours: "ItemInputs",
        held: "ItemInputs",
        bits: int | None,
        budget: int | None,
    ) -> "tuple[Trial, list[Trial]]":
        """Return the setting that was asked for or found, and all that a search tried."""
        from sonde.compress import fidelity, layer_grams
        from sonde.run.compressing.settings import Setting, Trial, fitting
        from sonde.run.compressing.sizes import sized_settings

        given: Mapping[str, Any] = {}
        if self.method != "rtn":
            given = {"calibration": layer_grams(model, ours, progress=not self.printing.quiet)}

        def tried(setting: "Setting") -> "Trial":
            plan = self._rule(setting.bits, setting.group).plan(model, given)
            return Trial(setting, plan, fidelity(model, plan.fold(model), held))

        if bits is not None:
            return tried(Setting(self.method, bits, self.group or 32, 0)), []
        settings = sized_settings(model, self.method)
        return fitting(settings, tried, budget=budget, max_kl=self.max_kl)

    def _rule(self, bits: int, group: int) -> "Rewrite":
        from sonde.compress import GPTQ, RTN

        return {"gptq": GPTQ, "rtn": RTN}[self.method](bits=bits, group=group)
