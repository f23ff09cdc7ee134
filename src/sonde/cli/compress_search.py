"""``sonde compress search``: what each size of a model costs, over methods and settings."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from sonde.cli._presenting import check_page, present
from sonde.cli.console import note
from sonde.cli.options import DataReading, DataWord, ModelWord, Printing, named


@dataclass(frozen=True)
class CompressSearch:
    """Try many ways to make a model smaller, and draw size against divergence.

    Every trial rounds, prunes or thins all linear layers and compares the answers with the
    original's on examples that calibrated nothing; no model is written. Trials are kept in
    PAGE.trials.jsonl: a search that is stopped, or asked for more, goes on where it was.

    Example: sonde compress search sonde:digits sonde:digits/train -o sizes.html
    """

    model: ModelWord
    data: DataWord
    output: Annotated[
        Path, tyro.conf.arg(aliases=["-o"], metavar="PAGE", help="page to write, .html or .json")
    ] = Path("compress-search.html")
    to: Annotated[
        tuple[str, ...], named("SIZE ...", "sizes as 4bit 50% 2:4 rank16 (default: a usual list)")
    ] = ()
    methods: Annotated[
        tuple[str, ...], named("WORD ...", "methods to try (default: those that suit each size)")
    ] = ()
    max_kl: Annotated[
        float, tyro.conf.arg(help="nats that the recommended model may differ by")
    ] = 0.01
    limit: Annotated[int, tyro.conf.arg(help="examples to calibrate on")] = 64
    held: Annotated[int, tyro.conf.arg(help="other examples to compare on")] = 32
    device: Annotated[str, tyro.conf.arg(help="auto, cpu, cuda or mps")] = "auto"
    reading: DataReading = field(default_factory=DataReading)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Try, draw and tell."""
        from sonde.data import load, open_inputs
        from sonde.run.compressing.choosing import chosen_parts
        from sonde.run.compressing.search import TrialFile, asked_pairs, search_key, trials
        from sonde.run.compressing.settings import require_divergence
        from sonde.weights.factory_folder import source_folder
        from sonde.weights.folder import ModelFolder, weight_bytes

        check_page(self.output, self.model, self.data)
        asked = asked_pairs(self.to, self.methods)
        model = load(self.model, device=self.device)
        with source_folder(model) as source:
            ModelFolder.open(source).plain()
            n_bytes = weight_bytes(source)
        n = 8 * (self.limit + self.held)
        inputs = open_inputs(
            model, self.data, split="train", limit=n, **self.reading.data_options()
        )
        ours, held = chosen_parts(inputs, self.limit, self.held)
        require_divergence(model, held)
        path = self.output.with_name(self.output.name + ".trials.jsonl")
        file = TrialFile(path, search_key(model, ours, held))
        made = list(trials(model, ours, held, asked, file, self._told))
        found = search_document(made, self.model, self.data, n_bytes,
                                self.max_kl, {"calibrated_on": len(ours), "compared_on": len(held)}
                                )  # fmt: skip
        wrote = f"{self.output}; trials are kept in {path}"
        present(found, self.printing, self.output, wrote)
        return 0

    def _told(self, words: str) -> None:
        if not self.printing.quiet:
            note(words)


def search_document(
    made: Any, model: str, data: str, n_bytes: int, max_kl: float, rows: dict[str, int]
) -> dict[str, Any]:
    """Return the JSON of a search, its trials by size."""
    from dataclasses import asdict

    from sonde.core.finite import finite_json
    from sonde.run.compressing.search import SCHEMA, best_trials

    best = best_trials(made)
    ordered = sorted(made, key=lambda t: (t.n_bytes, t.kl))
    told = [asdict(t) | {"best": t in best} for t in ordered]
    return finite_json(
        {"schema": SCHEMA, "model": model, "data": data, "bytes": n_bytes, "max_kl": max_kl,
         **rows, "trials": told}
    )  # fmt: skip
