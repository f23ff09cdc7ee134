"""``sonde read``: hidden states to disk."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from sonde.cli._notes import say_notes
from sonde.cli.console import Failed, note, say, say_json
from sonde.cli.options import DataWord, ModelWord, Printing, Reading, Running


@dataclass(frozen=True)
class Read:
    """Write the hidden states of a model over data to a folder of Arrow files.

    Example: sonde read sonde:digits sonde:digits/test --sites blocks -o acts
    """

    model: ModelWord
    data: DataWord
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], help="folder to write")] = Path("acts")
    reading: Reading = field(default_factory=Reading)
    running: Running = field(default_factory=Running)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Read, write, and print what was written."""
        from sonde.core.errors import InputError
        from sonde.data import load
        from sonde.run.progress import Bar
        from sonde.run.read import ARRAYS, read
        from sonde.store import describe_store, write_store

        self.running.check(self.output, "store.json")
        if self.output.is_file():
            raise InputError(f"read: expected a folder to write, got the file {self.output}.")
        self.reading.check(self.data)
        model = (
            self.model if self.model == ARRAYS else load(self.model, **self.reading.model_options())
        )
        stream = read(
            model, self.data, **self.reading.site_options(), **self.reading.data_options()
        )
        try:
            with Bar("read", len(stream), not self.printing.quiet) as bar:
                write_store(
                    stream,
                    self.output,
                    unit_size=self.running.unit_size,
                    fresh=self.running.fresh,
                    tick=bar.advance,
                )
        except KeyboardInterrupt:
            note(f"interrupted. What is written stays in {self.output}; the same command goes on.")
            raise Failed(130) from None
        facts = describe_store(self.output)
        if self.printing.json:
            say_json(facts)
        elif not self.printing.quiet:
            say(
                "\n".join(
                    f"{schema.key:<40} {schema.dim:>6} {schema.dtype}" for schema in stream.schema
                )
            )
        say_notes(stream, self.printing.quiet)
        note(f"wrote {self.output}: {facts['n_examples']} examples")
        return 0
