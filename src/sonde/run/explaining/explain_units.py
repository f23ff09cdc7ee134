"""``sonde.explain_units``: describe each unit of a site."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sonde.core._shown import document_html, document_line
from sonde.core.errors import InputError
from sonde.core.plan import UNIT_SIZE
from sonde.core.renaming import renamed
from sonde.run.explaining.atlas import Atlas, fit_atlas
from sonde.run.explaining.atlas_of_model import model_atlas
from sonde.run.explaining.dictionaries import open_dictionary
from sonde.run.explaining.dictionary_health import loss_recovered
from sonde.run.passes.crew import Runner
from sonde.run.passes.directory import dropped_on_error
from sonde.run.reading.load import load
from sonde.run.reading.notes import data_name
from sonde.run.reading.read import read
from sonde.tap.streams.live import LiveStream


@dataclass(frozen=True, eq=False)
class UnitAtlas:
    """Description of the units of a site, or of the features of a dictionary.

    Attributes
    ----------
    document : dict
        JSON: what ``sonde units`` prints and its page shows.
    atlas : Atlas
        The fitted figures.
    """

    document: dict[str, Any]
    atlas: Atlas

    def __repr__(self) -> str:
        return document_line(type(self).__name__, self.document)

    def _repr_html_(self) -> str:
        return document_html("Atlas of units", self.document)


@renamed("loading", "running")
def explain_units(
    model: Any,
    data: Any,
    site: str,
    *,
    dictionary: str | Path | None = None,
    n_exemplars: int = 8,
    n_clamped: int = 256,
    show_inputs: bool = True,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    processor: Any = None,
    workers: int = 0,
    threads: int | None = None,
    runner: Runner = "local",
    address: str | None = None,
    memory: int | None = None,
    unit_size: int = UNIT_SIZE,
    fresh: bool = False,
    directory: Path | None = None,
    progress: bool = True,
    **reading: Any,
) -> UnitAtlas:
    """Describe each unit of a site, or feature of a dictionary.

    For each unit: the rows on which it is highest, rows of every range below, its histogram, the
    label of the data that it follows, the tokens that it writes, and how the answers change if it
    is held at its highest value. The same as ``sonde units``.

    Parameters
    ----------
    model : str, path, Model or module
        Model, or what ``sonde.load`` takes: a folder, a name, a factory or a module.
    data : data
        Inputs, as ``sonde.read`` takes them: a path, a data set's name, or an iterable of inputs.
    site : str
        Site whose units are explained; the pattern must match exactly one site.
    dictionary : path, optional
        A dictionary whose features are shown: of ``sonde fit``, safetensors, or a SAELens folder.
    n_exemplars : int, default=8
        Highest rows of each unit.
    n_clamped : int, default=256
        The first units are held at their highest value; 0 for none.
    show_inputs : bool, default=True
        Put texts and pictures into the document.
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
    unit_size : int, default=256
        Number of examples that are committed together.
    fresh : bool, default=False
        Whether a run that was stopped starts again.
    directory : Path, optional
        Where the run is kept, so that it goes on if it was stopped.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.
    **reading
        Options of ``sonde.read``; the reducer is ``positions`` by default.

    Raises
    ------
    InputError
        If the model cannot be run, or there is not one site.
    """
    loaded = load(
        model, device=device, dtype=dtype, trust_remote_code=trust_remote_code, processor=processor
    )
    if reading.get("reducer", "auto") == "auto":
        reading["reducer"] = "positions"  # a row for each token or patch
    stream = read(loaded, data, sites=site, **reading)
    if not isinstance(stream, LiveStream):
        raise InputError(f"units: expected a model that can be run, got {loaded.name}.")
    if len(stream.schema) != 1:
        raise InputError(f"units: expected one site, got {len(stream.schema)}. Name one.")
    (place,) = stream.schema
    features, loss = None, None
    if dictionary is not None:
        features, _ = open_dictionary(Path(dictionary), loaded, str(place.site))
        loss = loss_recovered(loaded, stream.inputs, features, str(place.site))
    with dropped_on_error(directory):
        atlas = fit_atlas(
            stream,
            features,
            n=n_exemplars,
            directory=directory,
            progress=progress,
            unit_size=unit_size,
            fresh=fresh,
            workers=workers,
            threads=threads,
            runner=runner,
            address=address,
            memory=memory,
        )
    document = model_atlas(
        atlas,
        stream,
        model=loaded.name,
        data=data_name(data),
        dictionary=features,
        dictionary_file="" if dictionary is None else str(dictionary),
        loss=None if loss is None else loss.json(),
        n_clamped=n_clamped,
        shown=show_inputs,
    )
    return UnitAtlas(document, atlas)
