"""``sonde.search_sizes``: cost of each size of a model, over methods and settings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sonde.core._shown import document_html, document_line
from sonde.core.finite import finite_json
from sonde.core.renaming import renamed
from sonde.data import open_inputs
from sonde.engine.progress import callback_of
from sonde.run.compressing.choosing import chosen_parts
from sonde.run.compressing.search import (
    SCHEMA,
    SizeTrial,
    TrialFile,
    asked_pairs,
    best_trials,
    search_key,
    trials,
)
from sonde.run.compressing.settings import require_divergence
from sonde.run.reading.load import load
from sonde.run.reading.notes import data_name
from sonde.weights.factory_folder import source_folder
from sonde.weights.folder import ModelFolder, weight_bytes


@dataclass(frozen=True, eq=False)
class SizeSearch:
    """Every size and method that was tried.

    Attributes
    ----------
    document : dict
        JSON, ``sonde-compress-search/1``: what ``sonde compress search`` prints and its page shows.
    trials : list of SizeTrial
    """

    document: dict[str, Any]
    trials: list[SizeTrial]

    def __repr__(self) -> str:
        return document_line(type(self).__name__, self.document)

    def _repr_html_(self) -> str:
        return document_html("Search over sizes of a model", self.document)


@renamed(progress="tell")
def search_sizes(
    model: Any,
    data: Any,
    trial_file: str | Path,
    *,
    to: Sequence[str] = (),
    methods: Sequence[str] = (),
    max_kl: float = 0.01,
    limit: int = 64,
    held: int = 32,
    device: str = "auto",
    progress: Callable[[str], None] | None = None,
    **reading: Any,
) -> SizeSearch:
    """Try many ways to make a model smaller; no model is written.

    Every trial rounds, prunes or thins all linear layers and compares the answers with the
    original's on examples not used for calibration. The same as ``sonde compress search``.

    Parameters
    ----------
    model : str, path, Model or module
        Model, or what ``sonde.load`` takes: a folder, a name, a factory or a module.
    data : data
        Inputs, as ``sonde.read`` takes them: a path, a data set's name, or an iterable of inputs.
    trial_file : path
        JSONL where trials are kept: a search that is stopped, or asked for more, goes on from it.
    to : sequence of str
        Sizes such as ``4bit``, ``50%``, ``2:4``, ``rank16``; by default a usual list.
    methods : sequence of str
        Methods to try; by default those that suit each size.
    max_kl : float, default=0.01
        Nats that the recommended model may differ by.
    limit, held : int
        Examples to calibrate on, and others to compare on.
    device : str, default="auto"
        Device of the model: ``auto`` takes cuda, mps or cpu, and ``cpu`` or ``cuda:1`` name one.
    progress : callable, optional
        Function that is called with a line about each trial.
    **reading
        Options of ``sonde.read`` about data, such as ``text_column``.

    Raises
    ------
    InputError
        If a size or a method is unknown, or every method refuses the model.
    """
    asked = asked_pairs(to, methods)
    loaded = load(model, device=device)
    with source_folder(loaded) as source:
        ModelFolder.open(source).plain()
        n_bytes = weight_bytes(source)
    inputs = open_inputs(loaded, data, split="train", limit=8 * (limit + held), **reading)
    ours, others = chosen_parts(inputs, limit, held)
    require_divergence(loaded, others)
    file = TrialFile(Path(trial_file), search_key(loaded, ours, others))
    every = list(trials(loaded, ours, others, asked, file, callback_of(progress)))
    document = search_document(
        every,
        loaded.name,
        data_name(data, others),
        n_bytes,
        max_kl,
        {"calibrated_on": len(ours), "compared_on": len(others)},
    )
    return SizeSearch(document, every)


def search_document(
    made: Sequence[SizeTrial],
    model: str,
    data: str,
    n_bytes: int,
    max_kl: float,
    rows: Mapping[str, int],
) -> dict[str, Any]:
    """Return the JSON of a search, its trials by size."""
    best = best_trials(made)
    ordered = sorted(made, key=lambda t: (t.n_bytes, t.kl))
    listed = [asdict(t) | {"best": t in best} for t in ordered]
    return finite_json(
        {"schema": SCHEMA, "model": model, "data": data, "bytes": n_bytes, "max_kl": max_kl,
         **rows, "trials": listed}
    )  # fmt: skip
