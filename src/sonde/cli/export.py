"""``sonde export``: stored rows, or the states of a model, as files that other programs open."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from sonde.cli._notes import say_left_out, say_notes
from sonde.cli.console import note, say_json
from sonde.cli.options import Printing, Reading, RunFlags, named
from sonde.cli.read import Read
from sonde.core.errors import InputError
from sonde.core.wording import plural

ACTS = "acts"


@dataclass(frozen=True)
class Export:
    """Write hidden states as Parquet, arrays (.npz, .safetensors, .npy) or Lance with an index.

    The states come from a folder that sonde read wrote. With `acts MODEL DATA` they are read now,
    and the flags about reading apply. The same command continues an interrupted run.

    A table holds states, ids, labels, groups and the stored columns. For embedding viewers it also
    holds two principal directions of the last site as x and y, and the nearest rows of a sample.
    Arrays can be read by sonde fit METHODS - FILE. Only Lance's index needs all vectors in memory
    at once.

    Example: sonde export acts -o acts.parquet

    More: sonde export acts sonde:digits sonde:digits/test --sites blocks -o
    acts.safetensors, states that are not stored yet.
    """

    what: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        named(
            "STORE | acts MODEL DATA",
            "a folder that sonde read wrote; or acts, and the model and data to read",
        ),
    ]
    output: Annotated[
        Path,
        tyro.conf.arg(
            aliases=["-o"],
            metavar="FILE|DIR",
            help="file to write: .parquet, .npz, .safetensors or .lance; a folder of .npy else",
        ),
    ]
    columns: Annotated[
        tuple[str, ...] | None,
        named("NAME ...", "columns of the data to write; by default all that are stored"),
    ] = None
    no_rows: Annotated[bool, tyro.conf.arg(help="leave the states themselves out of Parquet")] = (
        False
    )
    neighbors: Annotated[
        int, tyro.conf.arg(help="nearest rows of the sample for each row; 0 for none")
    ] = 10
    sample: Annotated[
        int, tyro.conf.arg(help="size of the sample for directions and neighbours")
    ] = 2048
    reading: Reading = field(default_factory=Reading)
    running: RunFlags = field(default_factory=RunFlags)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Write, and name the file written."""
        from sonde.core.wording import gib
        from sonde.engine.progress import Bar
        from sonde.store import Store
        from sonde.store.exporting import check_export, export_store

        check_export(self.output)
        reads = len(self.what) > 1
        folder = self._read() if reads else Path(self.what[0])
        store = Store(folder, checked=True)
        with Bar("export", len(store), not self.printing.quiet) as bar:
            facts = export_store(
                store,
                self.output,
                sites="auto" if reads else list(self.reading.sites),
                columns=self.columns,
                rows=not self.no_rows,
                neighbors=self.neighbors,
                sample=self.sample,
                progress=bar.advance,
            )
        if reads:
            shutil.rmtree(folder)
        if self.printing.json:
            say_json(facts)
        n_sites = len(facts["sites"])
        note(
            f"wrote {self.output}: {plural(facts['n_rows'], 'row')} of "
            f"{plural(n_sites, 'site')}, {gib(facts['size_bytes'])}"
        )
        return 0

    def _read(self) -> Path:
        """Read the states to a folder beside the output, or resume there, and return it."""
        from sonde.run.passes.directory import run_directory

        if self.what[0] != ACTS or len(self.what) > 3:
            raise InputError(
                f"export: expected STORE, or {ACTS} MODEL DATA, got {' '.join(self.what)!r}."
            )
        folder = run_directory(self.output)
        _, model, *data = [*self.what]
        quiet = self.printing.quiet or self.printing.json
        columns = None if self.columns is None else ",".join(self.columns)
        stream = Read(
            model, "".join(data), folder, columns=columns,
            reading=self.reading, running=self.running, printing=self.printing,
        ).write()  # fmt: skip
        say_notes(stream, quiet)
        say_left_out(stream, quiet)
        return folder
