"""``sonde.explain_units``: describe each unit of a site."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonde.core._shown import document_html, document_line
from sonde.core.errors import InputError
from sonde.run.explaining.atlas import Atlas, fit_atlas
from sonde.run.explaining.atlas_of_model import model_atlas
from sonde.run.explaining.dictionaries import open_dictionary
from sonde.run.explaining.dictionary_health import loss_recovered
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


def explain_units(
    model: Any,
    data: Any,
    site: str,
    *,
    dictionary: str | Path | None = None,
    n_exemplars: int = 8,
    n_clamped: int = 256,
    show_inputs: bool = True,
    loading: Mapping[str, Any] | None = None,
    running: Mapping[str, Any] | None = None,
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
    data : data
        As in ``sonde.read``.
    site : str
    dictionary : path, optional
        A dictionary whose features are shown: of ``sonde fit``, safetensors, or a SAELens folder.
    n_exemplars : int, default=8
        Highest rows of each unit.
    n_clamped : int, default=256
        The first units are held at their highest value; 0 for none.
    show_inputs : bool, default=True
        Put texts and pictures into the document.
    loading, running : mapping, optional
        Options of ``sonde.load`` and of ``sonde.fit``.
    directory : Path, optional
        Where the run is kept, so that it goes on if it was stopped.
    progress : bool, default=True
    **reading
        Options of ``sonde.read``; the reducer is ``positions`` by default.

    Raises
    ------
    InputError
        If the model cannot be run, or there is not one site.
    """
    found = load(model, **(loading or {}))
    if reading.get("reducer", "auto") == "auto":
        reading["reducer"] = "positions"  # a row for each token or patch
    stream = read(found, data, sites=site, **reading)
    if not isinstance(stream, LiveStream):
        raise InputError(f"units: expected a model that can be run, got {found.name}.")
    if len(stream.schema) != 1:
        raise InputError(f"units: expected one site, got {len(stream.schema)}. Name one.")
    (place,) = stream.schema
    features, loss = None, None
    if dictionary is not None:
        features, _ = open_dictionary(Path(dictionary), found.module, str(place.site))
        loss = loss_recovered(found, stream.inputs, features, str(place.site))
    with dropped_on_error(directory):
        atlas = fit_atlas(
            stream,
            features,
            n=n_exemplars,
            directory=directory,
            progress=progress,
            **(running or {}),
        )
    document = model_atlas(
        atlas,
        stream,
        model=found.name,
        data=data_name(data),
        dictionary=features,
        dictionary_file="" if dictionary is None else str(dictionary),
        loss=None if loss is None else loss.json(),
        n_clamped=n_clamped,
        shown=show_inputs,
    )
    return UnitAtlas(document, atlas)
