"""``sonde export``: stored rows as one file that other programs open."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from sonde.cli.console import note, say_json
from sonde.cli.options import Printing, named


@dataclass(frozen=True)
class Export:
    """Write stored rows as Parquet, arrays (.npz, .safetensors) or Lance with a vector index.

    A table holds ids, labels, groups and the stored columns, and of the last site two principal
    directions as x and y and the nearest rows of a sample, as embedding viewers take them. Arrays
    are what sonde fit METHODS - FILE reads. Vectors are never held together in memory, but for
    Lance's index.

    Example: sonde export acts -o acts.parquet
    """

    store: Annotated[tyro.conf.Positional[Path], named("STORE", "a folder that sonde read wrote")]
    output: Annotated[
        Path,
        tyro.conf.arg(
            aliases=["-o"],
            metavar="FILE",
            help="file to write: .parquet, .npz, .safetensors or .lance",
        ),
    ]
    sites: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="PATTERN ...", help="which of its sites; all read by one reducer"),
    ] = ("auto",)
    columns: Annotated[
        tuple[str, ...] | None,
        named("NAME ...", "which of its stored columns go into a table; all by default"),
    ] = None
    rows: Annotated[bool, tyro.conf.arg(help="add the rows themselves to Parquet")] = False
    neighbors: Annotated[
        int, tyro.conf.arg(help="nearest rows of the sample for each row; 0 for none")
    ] = 10
    sample: Annotated[int, tyro.conf.arg(help="rows from which directions and neighbours come")] = (
        2048
    )
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Write, and say what was written."""
        from sonde.core.wording import gib
        from sonde.engine.progress import Bar
        from sonde.store import Store
        from sonde.store.exporting import export_store

        store = Store(self.store, checked=True)
        with Bar("export", len(store), not self.printing.quiet) as bar:
            facts = export_store(
                store,
                self.output,
                sites=list(self.sites),
                columns=self.columns,
                rows=self.rows,
                neighbors=self.neighbors,
                sample=self.sample,
                tick=bar.advance,
            )
        if self.printing.json:
            say_json(facts)
        n_sites = len(facts["sites"])
        note(
            f"wrote {self.output}: {facts['n_rows']:,} rows of {n_sites} "
            f"site{'s' * (n_sites != 1)}, {gib(facts['size_bytes'])}"
        )
        return 0
