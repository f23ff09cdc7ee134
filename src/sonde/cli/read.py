"""``sonde read``: write hidden states to disk."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from sonde.cli._notes import say_left_out, say_notes
from sonde.cli.console import CommandFailed, note, say, say_json
from sonde.cli.options import (
    EstimateFlag,
    Printing,
    Reading,
    RunFlags,
    SourceDataWord,
    SourceWord,
    named,
    say_estimate,
    source_of,
)
from sonde.core.wording import plural


@dataclass(frozen=True)
class Read:
    """Write the hidden states of a model over data to a folder of Arrow files.

    Weights are read without DATA: --sites 'layers.*.mlp.down_proj:weight'. From a folder of stored
    rows, some sites or a fraction of the rows are written to another folder.

    Example: sonde read sonde:digits sonde:digits/test --sites blocks -o acts

    More: sonde read MODEL MORE --sites blocks -o acts --append, rows of further
    data; sonde read MODEL DATA --sites head -o acts --add-sites, further sites.
    """

    model: SourceWord
    data: SourceDataWord = ""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], help="folder to write")] = Path("acts")
    append: Annotated[bool, tyro.conf.arg(help="append rows of further data to the folder")] = False
    add_sites: Annotated[
        bool, tyro.conf.arg(help="add further sites of the same data to the folder")
    ] = False
    keep: Annotated[
        str | None, named("1/N", "keep 1 of N rows of tokens or patches, chosen by hash")
    ] = None
    columns: Annotated[str | None, named("A,B", "columns of the data to store with the rows")] = (
        None
    )
    no_inputs: Annotated[bool, tyro.conf.arg(help="do not store the texts beside their rows")] = (
        False
    )
    further: Annotated[
        str | None,
        named(
            "REDUCER,...", "further reducers of the same sites, e.g. tokens, stored as site|tokens"
        ),
    ] = None
    estimate: EstimateFlag = False
    reading: Reading = field(default_factory=Reading)
    running: RunFlags = field(default_factory=RunFlags)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Read, write, and print a summary."""
        from sonde.store import Store

        if self.estimate:
            stream, _ = self._stream()
            size = self.running.unit_size
            return say_estimate(self.printing, "read", stream, unit_size=size)
        stream = self.write()
        self._say(stream)
        say_notes(stream, self.printing.quiet)
        say_left_out(stream, self.printing.quiet)
        note(f"wrote {self.output}: {plural(len(Store(self.output)), 'example')}")
        return 0

    def write(self) -> Any:
        """Read and write, and return the stream of rows."""
        from sonde.engine.progress import Bar
        from sonde.run.passes.storing import dropped_if_empty
        from sonde.run.reading.checking import check_rows

        self._check()
        stream, columns = self._stream()
        check_rows(stream)
        try:
            with (
                dropped_if_empty(self.output),
                Bar("read", len(stream), not self.printing.quiet, keeps=True) as bar,
            ):
                self._write(stream, columns, bar.advance)
        except KeyboardInterrupt:
            note(
                f"interrupted. Written rows are kept in {self.output}; the same command continues."
            )
            raise CommandFailed(130) from None
        return stream

    def _check(self) -> None:
        """Raise if the output exists, or if flags contradict each other."""
        from sonde.core.errors import InputError
        from sonde.store.outputs import check_folder

        check_folder(self.output, self.model)
        self.running.check(self.output, "store.json")
        grows = self.append or self.add_sites
        if self.append and self.add_sites:
            raise InputError(
                "read: --append and --add-sites are two runs. Add one after the other."
            )
        if grows and self.running.fresh:
            raise InputError(
                "read: --fresh replaces the rows that --append or --add-sites keep. Leave out "
                "one of the two flags."
            )
        if grows and not (self.output / "store.json").exists():
            raise InputError(
                f"read: there is no store in {self.output} to add to. Leave out --append or "
                "--add-sites."
            )
        if self.add_sites and self.columns is not None:
            raise InputError(
                "read: --columns belong to the data, not to the added sites. Leave out --columns."
            )

    def _stream(self) -> tuple[Any, dict[str, list[Any]]]:
        """Return the rows to write, and the columns of the data beside them."""
        from sonde.run.reading.class_order import stream_in_sorted_order
        from sonde.run.reading.read import chosen_columns, read, text_columns
        from sonde.store import KeptRows

        every = parse_keep(self.keep)
        model, data = source_of("read", self.model, self.data, self.reading)
        stream = read(
            model,
            data,
            further=_words(self.further),
            **self.reading.site_options(),
            **self.reading.data_options(),
        )
        stream = stream_in_sorted_order(stream)
        names = _words(self.columns)
        if not self.no_inputs and not self.add_sites:
            names += [name for name in text_columns(stream) if name not in names]
        columns = chosen_columns(stream, names)
        return (stream if every == 1 else KeptRows(stream, every)), columns

    def _write(self, stream: Any, columns: dict[str, list[Any]], tick: Any) -> None:
        from sonde.run.passes.storing import filled_by
        from sonde.store import add_sites, append_store, write_store

        running = self.running
        fill = filled_by(running.crew(), running.threads, running.memory_bytes())
        how = {"tick": tick, "fill": fill}
        if self.append:
            append_store(stream, self.output, columns=columns, **how)
        elif self.add_sites:
            add_sites(stream, self.output, **how)
        else:
            size, fresh = running.unit_size, running.fresh
            write_store(stream, self.output, unit_size=size, columns=columns, fresh=fresh, **how)

    def _say(self, stream: Any) -> None:
        from sonde.cli.info import partial_sites
        from sonde.store import describe_store

        facts = describe_store(self.output)
        if self.printing.json:
            say_json(facts | {"left_out": [entry.json() for entry in stream.left_out]})
        elif not self.printing.quiet:
            form = "{key:<40} {dim:>6} {dtype} {reducer}"
            say("\n".join(form.format(**site) for site in facts["sites"]))
            if facts["partial_sites"]:
                note(
                    "note: these sites are missing in some data sets and not counted: "
                    f"{partial_sites(facts)}. Add them to the other data sets with --add-sites."
                )


def _words(text: str | None) -> list[str]:
    return [] if text is None else [word.strip() for word in text.split(",") if word.strip()]


def parse_keep(text: str | None) -> int:
    """Parse N of ``1/N``.

    Examples
    --------
    >>> parse_keep("1/8"), parse_keep(None)
    (8, 1)

    Raises
    ------
    InputError
        If the text does not have this form.
    """
    from sonde.core.errors import InputError

    if text is None:
        return 1
    match = re.fullmatch(r"1/([1-9]\d{0,8})", text.strip())
    if match is None:
        raise InputError(f"--keep: expected a fraction such as 1/8, got {text!r}.")
    return int(match[1])
