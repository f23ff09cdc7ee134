"""``sonde compress``: a smaller model, and what that did to its answers."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sonde.cli._presenting import check_page, present, with_page
from sonde.cli.console import REMARK, note
from sonde.cli.options import DataReading, DataWord, ModelWord, Printing, named
from sonde.core.errors import InputError

if TYPE_CHECKING:
    from sonde.compress import LayerGrams
    from sonde.core.inputs import Model
    from sonde.data.inputs import ItemInputs
    from sonde.run.compressing.search import SizeTrial
    from sonde.run.compressing.settings import Setting, Trial
    from sonde.weights import Rewrite

UNITS = {"": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
MOST_LISTED, MOST_FITTED = 1024, 512
"""Items that are listed, and examples that calibrate, if --limit is not given."""


@dataclass(frozen=True)
class Compress:
    """Write a model with smaller weights, and say what it costs.

    --to names the size: 4bit rounds the weights of linear layers to four bits, 50% removes half of
    them, 2:4 two of every four, rank16 replaces them by thin matrices, 5blocks leaves out all but
    five blocks. Stacked experts are rounded with them. Embeddings and convolutions stay unless
    --layers names them; an embedding that is also the head stays one tensor with it. Some examples
    of DATA, drawn by the hash of their ids, calibrate the method; others measure the change.
    `sonde methods compress` lists the methods. `sonde compress search MODEL DATA` tries many sizes
    and methods and writes no model. `sonde compress undo SMALL -o OLD` gives every file back while
    SMALL.patch is there. If MODEL is package.module:factory, open the small model as
    package.module:factory@SMALL.

    Example: sonde compress sonde:stdlib sonde:stdlib/train --to 4bit --limit 16 --held 8 -o SMALL
    """

    model: ModelWord
    data: DataWord
    output: Annotated[
        Path, tyro.conf.arg(aliases=["-o"], metavar="SMALL", help="folder for the smaller model")
    ]
    to: Annotated[
        str | None,
        named("SIZE", "4bit (1bit to 8bit), 50%, 2:4, rank16, 5blocks (default: 4bit)"),
    ] = None
    budget: Annotated[
        str | None,
        named("SIZE", "most bytes of weight files, as 100MiB; seeks the size of the method"),
    ] = None
    max_kl: Annotated[
        float | None, named("NATS", "most divergence of answers; seeks the smallest such model")
    ] = None
    method: Annotated[
        str | None,
        named(
            "WORD", "as gptq or 'sparse_gpt(refit=True)'; any: all, for a budget (default: by size)"
        ),
    ] = None
    group: Annotated[
        int | None, named("N", "weights that share a scale (default: the method's, mostly 32)")
    ] = None
    layers: Annotated[
        tuple[str, ...],
        named(
            "PATTERN ...",
            "layers by name, '*' with embeddings and convolutions (default: all linear ones)",
        ),
    ] = ()
    limit: Annotated[
        int | None,
        named("N", "examples to calibrate on (default: 8 rows for each input of a layer)"),
    ] = None
    held: Annotated[int, named("N", "other examples to compare on (default: 64)")] = 64
    report: Annotated[
        Path | None, named("FILE", "page to write, .html or .json (default: SMALL.html)")
    ] = None
    device: Annotated[str, tyro.conf.arg(help="auto, cpu, cuda or mps")] = "auto"
    reading: DataReading = field(default_factory=DataReading)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Plan, compare, write and tell."""
        from sonde.data import load
        from sonde.run.compressing.document import compress_document
        from sonde.run.compressing.inside import inside
        from sonde.run.compressing.timing import speeds
        from sonde.weights import save_edited
        from sonde.weights.factory_folder import check_change, source_folder
        from sonde.weights.folder import check_output, weight_bytes

        method, budget, page = self._method(), self._budget(), self._page()
        check_output(self.output)
        model = load(self.model, device=self.device)
        check_change(model, self.output, plain=True)
        if method is not None:
            method.check(model)
        ours, held = self._examples(model)
        best, tried = self._best(model, ours, held, method, budget)
        new = best.plan.fold(model)
        sites, times = inside(model, new, held, best.plan.renamed), speeds(model, new, held)
        with source_folder(model) as source:
            saved = save_edited(source, best.plan, self.output, name=self.model)
            n_bytes = [weight_bytes(at) for at in (source, self.output)]
        with with_page(self.output):
            document = compress_document(
                model,
                new,
                best.plan,
                name=self.model,
                data=self.data,
                output=self.output,
                bytes_on_disk=n_bytes,
                fidelity=best.fidelity,
                sites=sites,
                times=times,
                rows={
                    "calibrated_on": len(ours) if method is None or self._reads(method) else 0,
                    "compared_on": len(held),
                },
                tried=[trial.json() for trial in tried],
            )
            wrote = f"{self.output}, {page}, and {saved.patch} to take it back"
            present(document, self.printing, page, wrote)
        return 0

    @property
    def _seeks(self) -> bool:
        return self.budget is not None or self.max_kl is not None

    def _method(self) -> Any:
        """Return the method with its parameters, None for ``any``; a search replaces its bits."""
        from sonde.run.compressing.methods import Target, method_asked
        from sonde.run.compressing.search import ANY

        if self._seeks and (self.to is not None or self.group is not None):
            raise InputError(
                "--budget and --max-kl seek bits and group: leave out --to and --group."
            )
        if self.method == ANY:
            if not self._seeks:
                raise InputError("--method any: say what fits, with --budget or --max-kl.")
            return None
        target = None if self.to is None else Target.of(self.to)
        given = {"group": self.group, "layers": self.layers or None}
        return method_asked(self.method, target, given)

    def _budget(self) -> int | None:
        if self.budget is None:
            return None
        told = re.fullmatch(r"([0-9.]+) ?([KMG]I?B)?", self.budget.strip().upper())
        if told is None or told[1].count(".") > 1 or told[1] == ".":
            raise InputError(f"--budget: expected bytes as 100MiB or 2GB, got {self.budget!r}.")
        return math.floor(float(told[1]) * UNITS[told[2] or ""])

    def _page(self) -> Path:
        page = self.report or self.output.absolute().with_name(self.output.name + ".html")
        check_page(page, flag="--report")
        return page

    def _examples(self, model: "Model") -> "tuple[ItemInputs, ItemInputs]":
        """Return the examples to calibrate on and those to compare on."""
        from sonde.data import open_inputs
        from sonde.run.compressing.choosing import chosen_parts, enough_examples

        n = MOST_LISTED if self.limit is None else 8 * (self.limit + self.held)
        inputs = open_inputs(
            model, self.data, split="train", limit=n, **self.reading.data_options()
        )
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
        method: Any,
        budget: int | None,
    ) -> "tuple[Trial, Sequence[Trial | SizeTrial]]":
        """Return the setting that was asked for or found, and all that a search tried."""
        from sonde.compress import fidelity
        from sonde.run.compressing.settings import Trial, fitting, require_divergence
        from sonde.run.compressing.sizes import sized_settings

        if self.max_kl is not None:
            require_divergence(model, held)
        if self._seeks and not self._has_grid(method):
            return self._sought(model, ours, held, budget)
        given: Mapping[str, Any] = {}
        if self._reads(method):
            shown = not self.printing.quiet
            given = {"calibration": self._read(model, method, ours, shown)}

        def tried(setting: "Setting | None") -> "Trial":
            rule = method
            if setting is not None:
                rule = replace(method, bits=setting.bits, group=setting.group)
            plan = rule.plan(model, given)
            return Trial(setting, plan, fidelity(model, plan.fold(model), held))

        if not self._seeks:
            return tried(None), []
        word = (self.method or "gptq").partition("(")[0]
        settings = sized_settings(model, word, self.layers or None)
        return fitting(settings, tried, budget=budget, max_kl=self.max_kl)

    def _has_grid(self, method: Any) -> bool:
        """Return whether a method has bits and groups, whose bytes are known without trying."""
        if method is None or not {"bits", "group"} <= {f.name for f in fields(method)}:
            return False
        return method.bits not in (None, 1)

    def _sought(
        self, model: "Model", ours: "ItemInputs", held: "ItemInputs", budget: int | None
    ) -> "tuple[Trial, list[SizeTrial]]":
        """Return the trial that fits, of all sizes of a method or all methods, and every trial."""
        from sonde.compress import fidelity
        from sonde.run.compressing.methods import Target, method_asked
        from sonde.run.compressing.search import (
            TrialFile,
            fitting_trial,
            pairs_to_seek,
            search_key,
            trials,
        )
        from sonde.run.compressing.settings import Trial

        path = self.output.absolute().with_name(self.output.name + ".trials.jsonl")
        key = search_key(model, ours, held) + "".join(self.layers)
        asked, given = pairs_to_seek(str(self.method)), {"layers": self.layers or None}
        file = TrialFile(path, key)
        made = list(trials(model, ours, held, asked, file, self._told, given))
        best = fitting_trial(made, budget, self.max_kl)
        rule = method_asked(best.method, Target.of(best.size), given)
        plan = rule.plan(model, dict.fromkeys(rule.reads(), ours))
        return Trial(None, plan, fidelity(model, plan.fold(model), held)), made

    def _told(self, words: str) -> None:
        if not self.printing.quiet:
            note(words)

    def _read(self, model: "Model", method: Any, ours: "ItemInputs", shown: bool) -> Any:
        """Return the examples, or their moments if the method takes moments."""
        from sonde.compress import LayerGrams, layer_grams
        from sonde.compress._layers import require_finite_weights, weighted_layers

        if any(getattr(need, "summed", None) is LayerGrams for need in method.reads().values()):
            owner = type(method).__name__
            for layer in weighted_layers(owner, model, method.layers):
                require_finite_weights(owner, layer)
            grams = layer_grams(model, ours, layers=method.layers, progress=shown)
            _note_few_rows(grams, len(ours))
            return grams
        return ours

    def _reads(self, method: "Rewrite") -> bool:
        """Return whether a method reads examples."""
        from sonde.weights import Examples

        needs = [need for need in method.reads().values() if isinstance(need, Examples)]
        return any(not need.optional for need in needs)


def _note_few_rows(grams: "LayerGrams", n_examples: int) -> None:
    """Name the layer that has the fewest rows for its inputs, and how many examples give enough."""
    known = {name: state for name, state in grams.states.items() if state.n}
    lacks = {name: len(state.mean) / state.n for name, state in known.items()}
    if not lacks:
        return
    name = max(lacks, key=lambda name: lacks[name])
    if lacks[name] <= 1:
        return
    state = grams.states[name]
    note(
        f"{REMARK}{re.split('[&#]', name)[0]} is calibrated on {state.n} rows, which have "
        f"{len(state.mean)} numbers each: fewer rows than numbers say little of which errors "
        f"matter. Give --limit {math.ceil(lacks[name] * n_examples)} or more."
    )
