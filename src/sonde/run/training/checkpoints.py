"""Read a folder of checkpoints into a ``Track``, one after another."""

import hashlib
import itertools
import json
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from sonde.core.errors import InputError, SondeWarning, StateError
from sonde.core.instrument import Instrument
from sonde.core.renaming import renamed
from sonde.core.stream import Stream
from sonde.core.wording import plural
from sonde.files.durable import atomic_write
from sonde.run.fitting.fit import fit
from sonde.run.fitting.prepared import prepare
from sonde.run.instruments.asked import asked
from sonde.run.instruments.words import Asked, instruments_of
from sonde.run.passes.crew import Runner
from sonde.run.reading.load import load
from sonde.run.reading.read import read
from sonde.run.training.track import Track

WEIGHTS = "checkpoints.json"
"""Hashes of the checkpoints that a record was read from, by step."""
WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth")
_STEP = re.compile(r"(\d+)$")


@renamed("loading", "running", progress="begun")
def track(
    methods: Asked | Iterable[Asked],
    folder: str | Path,
    data: Any,
    *,
    record: str | Path | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    processor: Any = None,
    workers: int = 0,
    threads: int | None = None,
    runner: Runner = "local",
    address: str | None = None,
    memory: int | None = None,
    fresh: bool = False,
    progress: bool | Callable[[int], None] = True,
    **options: Any,
) -> Track:
    """Fit measures on every checkpoint in a folder and return the track.

    Parameters
    ----------
    methods : Instrument, word or several
        Instruments that are fitted on every checkpoint, as objects or as words (``cka,two_nn``).
    folder : path
        Holds a folder for each checkpoint, whose name ends in its step.
    data : anything that ``sonde.read`` takes
        Inputs, as ``sonde.read`` takes them: a path, a data set's name, or an iterable of inputs.
    record : path, optional
        Where the steps are kept; ``FOLDER.track`` by default. Steps in it are not read again.
    device : str or torch.device, default="auto"
        Device of the model; ``auto`` takes cuda, mps or cpu, as ``sonde.load``.
    dtype : str or torch.dtype, default="auto"
        Type of the weights; ``auto`` takes the type that the configuration names.
    trust_remote_code : bool, default=False
        Whether Python code that comes with the checkpoint may run.
    processor : object, optional
        Tokenizer, image processor, or function that turns an item into a tensor; by default the
        model's own.
    workers : int, default=0
        Number of processes that share the work; 0 works in this process.
    threads : int, optional
        Threads of each process; by default the cores divided by the processes.
    runner : {"local", "ray"}, default="local"
        Where the processes run.
    address : str, optional
        Address of a running Ray cluster, ``host:port`` or ``auto``; by default a local cluster is
        started.
    memory : int, optional
        Limit in bytes; a run that is expected to need more is refused.
    fresh : bool, default=False
        Drop the steps in the record and read all checkpoints.
    progress : bool or callable, default=True
        Whether a bar is shown; a function is called with each step before it is read, beside the
        bar.
    **options
        Options of ``sonde.read`` for every checkpoint, such as ``sites``.

    Raises
    ------
    InputError
        If the folder holds no checkpoints.
    StateError
        If the record holds steps of other instruments, sites, data or checkpoints.
    """
    instruments, folder = instruments_of(methods), Path(folder)
    kept = Track(record or folder.absolute().with_name(f"{folder.name}.track"))
    options = {**asked(instruments), **options}
    if fresh:
        kept.clear()
    record_checkpoints(
        instruments,
        checkpoint_folders(folder),
        lambda name: read(
            load(
                name,
                device=device,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                processor=processor,
            ),
            data,
            **options,
        ),
        kept,
        progress=progress,
        workers=workers,
        threads=threads,
        runner=runner,
        address=address,
        memory=memory,
    )
    return kept


def checkpoint_folders(folder: str | Path) -> list[tuple[int, Path]]:
    """Return the models in a folder by the number at the end of their names, ascending.

    Raises
    ------
    InputError
        If there is no checkpoint, or two have the same number.

    Examples
    --------
    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp())
    >>> for step in (20, 100):
    ...     (place / f"checkpoint-{step}").mkdir()
    ...     _ = (place / f"checkpoint-{step}" / "config.json").write_text("{}")
    >>> [step for step, _ in checkpoint_folders(place)]
    [20, 100]
    """
    place = Path(folder)
    folders = [p for p in place.iterdir() if p.is_dir()] if place.is_dir() else []
    steps = sorted((int(m[1]), path) for path in folders if (m := _STEP.search(path.name)))
    readable = [(step, path) for step, path in steps if (path / "config.json").is_file()]
    if readable and len(readable) < len(steps):
        left_out = [path.name for step, path in steps if (step, path) not in readable]
        warnings.warn(
            f"{plural(len(left_out), 'folder')} of {place} without a config.json left out: "
            f"{', '.join(left_out)}. Copy the config.json of the model into these folders.",
            SondeWarning,
            stacklevel=2,
        )
    if not readable:
        raise InputError(
            f"expected checkpoints in {place}, folders such as checkpoint-500 with a config.json; "
            "got none."
        )
    for (step, path), (other, again) in itertools.pairwise(readable):
        if step == other:
            raise InputError(f"expected one checkpoint of step {step}, got {path} and {again}.")
    return readable


@renamed(progress="begun")
def record_checkpoints(
    instruments: Sequence[Instrument],
    folders: Sequence[tuple[int, Path]],
    opened: Callable[[str], Stream],
    track: Track,
    *,
    progress: bool | Callable[[int], None] = True,
    **options: Any,
) -> None:
    """Fit instruments on each checkpoint that a track does not yet hold.

    Parameters
    ----------
    instruments : sequence of Instrument
    folders : sequence of (int, path)
        See ``checkpoint_folders``.
    opened : callable
        Returns the stream of hidden states of the model in a folder.
    track : Track
        Steps that it holds are kept: a run that was stopped goes on.
    progress : bool or callable, default=True
        Whether a bar is shown; a function is called with each step before it is read, beside the
        bar.
    **options
        Of ``sonde.fit``.

    Raises
    ------
    StateError
        If the track holds steps of other instruments, sites, data or checkpoints.
    """
    recorded = [(step, path) for step, path in folders if step in track.steps]
    file = Path(track.directory) / WEIGHTS
    is_kept = bool(recorded) and file.is_file()
    digests = _digests_in(file) if is_kept else {}
    for step, path in recorded:
        if digests.get(str(step)) not in (None, weights_digest(path)):
            raise track.other_checkpoint(step)
    if recorded:
        step, path = recorded[0]
        settled = prepare(list(instruments), opened(str(path)), calibrate=0.0, reduction="auto")
        track.check_reading(step, settled)
    for step, path in folders:
        if step in track.steps:
            continue
        if callable(progress):
            progress(step)
        shown = {"progress": bool(progress), **options}
        track.add(step, fit(list(instruments), opened(str(path)), calibrate=0.0, **shown))
        digests[str(step)] = weights_digest(path)
        atomic_write(file, json.dumps(digests).encode())


def _digests_in(file: Path) -> dict[str, str]:
    """Return the hash of each checkpoint of a track, by its step."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise StateError(
            f"track: expected hashes of checkpoints in {file}, got a damaged file ({error}). "
            "Record the track again (--fresh)."
        ) from None


def weights_digest(folder: Path) -> str:
    """Return a hash of the configuration and the weight files in a folder."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        if path.name == "config.json" or path.suffix in WEIGHT_FILES:
            digest.update(path.name.encode())
            with path.open("rb") as held:
                digest.update(hashlib.file_digest(held, "blake2b").digest())
    return digest.hexdigest()
