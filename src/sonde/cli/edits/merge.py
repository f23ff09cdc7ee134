"""``sonde edit merge``: join several models of the same base."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sonde.cli.console import note, say_json
from sonde.cli.options import Printing, named
from sonde.core.renaming import renamed


@renamed(remove="drop")
@dataclass(frozen=True)
class MergeModels:
    """Merge models that were fine-tuned from the same base, without any data.

    ties adds the changes on which the models agree, arithmetic adds all changes, dare a random
    tenth of them, and slerp interpolates half way from BASE to one other model. Memory stays below
    the size of one model, unless the models come from a package.module:factory.

    Differs: merges models and needs no data; sonde merge joins fitted .sonde files.

    Example: sonde edit merge sonde:stdlib sonde:stdlib -o NEW --method ties
    """

    models: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        named("BASE MODEL [...]", "the base model, then models that were fine-tuned from it"),
    ]
    output: Annotated[
        Path, tyro.conf.arg(aliases=["-o"], metavar="NEW", help="folder for the merged model")
    ]
    method: Annotated[
        Literal["arithmetic", "ties", "dare", "slerp"], tyro.conf.arg(help="method of merging")
    ] = "ties"
    weight: Annotated[
        float | None,
        named(
            "W",
            "scale of the added change (arithmetic 0.3, ties 1), or position between "
            "the models (slerp 0.5)",
        ),
    ] = None
    density: Annotated[
        float | None, named("SHARE", "fraction of entries that ties keeps (0.2)")
    ] = None
    remove: Annotated[float | None, named("SHARE", "fraction of entries that dare drops (0.9)")] = (
        None
    )
    seed: Annotated[int | None, named("N", "seed of the entries that dare drops (0)")] = None
    keep: Annotated[
        tuple[str, ...],
        named("PATTERN ...", "tensors that keep the values of the base: 'classifier.*'"),
    ] = ()
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Merge, and name the files written."""
        from sonde.data.unloaded import kind_of_folder
        from sonde.run.changing.merge_models import merge_models

        names = ("weight", "density", "remove", "seed")
        typed = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        base, *others = self.models
        merged = merge_models(
            base,
            others,
            self.output,
            method=self.method,
            keep=self.keep,
            progress=not self.printing.quiet,
            **typed,
        )
        facts = {
            "folder": str(merged.folder),
            "method": merged.method,
            "n_merged": merged.n_merged,
            "n_kept": merged.n_kept,
            "sources": list(merged.sources),
        }
        if self.printing.json:
            say_json(facts)
        for line in merged.notes:
            note(line)
        kept = f", {merged.n_kept} kept from the base" if merged.n_kept else ""
        note(f"wrote {self.output}: {merged.n_merged} tensors merged by {merged.method}{kept}")
        kind = kind_of_folder(merged.folder)
        if kind is not None and kind[1] == "causal":
            note(f"sonde edit judge {base} {self.output} shows what the merge changed")
        return 0
