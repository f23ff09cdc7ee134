"""``sonde track``: measures over the steps of a training run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from sonde.cli._presenting import check_page, present
from sonde.cli.console import note
from sonde.cli.options import PageWord, Printing, Reading, Workers, named
from sonde.core.errors import InputError
from sonde.core.wording import plural

if TYPE_CHECKING:
    from sonde.run.training.track import Track as Recorded


@dataclass(frozen=True)
class Track:
    """Show how measures of the hidden states change over a training run.

    FOLDER is a record of sonde.TrackCallback, or a folder of checkpoints (checkpoint-500, ...).
    Checkpoints are read over DATA one after the other, and the states of each are kept in RECORD:
    the same command continues where it was stopped, and reads only new checkpoints. Steps are also
    compared on their sampled rows: how similar each step is to the last step, and from which step
    on the features of the last step can be predicted.

    Example: sonde track run.track -o track.html

    Of checkpoints: sonde track checkpoints probe.jsonl --methods participation_ratio -o track.html
    """

    folder: Annotated[tyro.conf.Positional[Path], named("FOLDER", "a record, or checkpoints")]
    data: Annotated[
        tyro.conf.Positional[str], named("DATA", "data over which checkpoints are read")
    ] = ""
    output: PageWord = None
    methods: Annotated[
        str, named("METHODS", "measures, separated by commas; see sonde methods measure")
    ] = "participation_ratio,stable_rank,anisotropy,norms"
    record: Annotated[
        Path | None, named("RECORD", "folder in which the steps are kept (default: FOLDER.track)")
    ] = None
    log: Annotated[
        str | None,
        named("LOGGER", "log each step to tensorboard:FOLDER, wandb:PROJECT or mlflow:EXPERIMENT"),
    ] = None
    fresh: Annotated[
        bool, tyro.conf.arg(help="drop the steps in RECORD and read every checkpoint again")
    ] = False
    reading: Reading = field(default_factory=Reading)
    crew: Workers = field(default_factory=Workers)
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Read the remaining checkpoints, print and write."""
        from sonde.run.training.track_document import track_document

        check_page(self.output, self.folder, self.data)
        recorded = self._recorded()
        document = track_document(recorded)
        present(document, self.printing, self.output)
        if self.log is not None:
            from sonde.run.training.loggers import log_track

            note(f"{plural(log_track(recorded, self.log), 'step')} logged to {self.log}")
        return 0

    def _recorded(self) -> "Recorded":
        """Return the record, with missing checkpoints read over the data.

        Raises
        ------
        InputError
            If the folder is not there, or holds checkpoints and no data are given.
        """
        from sonde.cli.fit import reading_of
        from sonde.run.instruments.words import parse_methods
        from sonde.run.training.checkpoints import checkpoint_folders, track
        from sonde.run.training.track import Track as Recorded

        if not self.folder.is_dir():
            raise InputError(f"FOLDER: there is no folder {self.folder}.")
        there = Recorded(self.folder)
        if there.steps:
            if self.data:
                raise InputError(
                    f"DATA: {self.folder} is a record; it already contains its data. Pass "
                    "the folder of checkpoints to read other data."
                )
            return there
        folders = checkpoint_folders(self.folder)
        if not self.data:
            raise InputError(
                f"DATA: {self.folder} holds {len(folders)} checkpoints. Name the data over which "
                "they are read."
            )
        self.reading.check(self.data)
        instruments = parse_methods(self.methods)
        options = reading_of(instruments, self.reading.site_options())
        quiet, steps = self.printing.quiet, [step for step, _ in folders]

        def announce(step: int) -> None:
            note(f"step {step:,} ({steps.index(step) + 1} of {len(steps)})")

        return track(
            instruments,
            self.folder,
            self.data,
            record=self.record,
            fresh=self.fresh,
            progress=False if quiet else announce,
            **self.reading.model_options(),
            **self.crew.worker_options(),
            **options,
            **self.reading.data_options(),
        )
