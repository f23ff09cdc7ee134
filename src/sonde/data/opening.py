"""Turn a user's word for data into ``Inputs`` for one model."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from sonde.core.errors import InputError, near, no_file, reason_of
from sonde.core.inputs import Model
from sonde.core.wording import plural
from sonde.data import hub
from sonde.data.arrays import ARRAY_SUFFIXES, array_source
from sonde.data.columns import Flags, Layout, Sample, layout
from sonde.data.encoder import Encoder, forward_names, tensor_arguments
from sonde.data.encoding import batch_size_for, encoder_for, item_kind, main_input
from sonde.data.folders import MediaFolder
from sonde.data.image_encoding import ImageFlags
from sonde.data.inputs import ItemInputs
from sonde.data.iterables import PAIRS, ArrayRows, Iterated, Tuples, features_and_labels
from sonde.data.limited import Kept, kept_items
from sonde.data.listing import Listing, list_source, pick
from sonde.data.numbers import NumbersEncoder
from sonde.data.ray_data import RayRows, is_ray_data
from sonde.data.several_files import open_several, table_files
from sonde.data.shipped import is_shipped, shipped_source
from sonde.data.sources import Source
from sonde.data.span import span_of
from sonde.data.splits import FIRST, TRAIN, chosen_split, path_of, split_folders
from sonde.data.tables import CsvFile, JsonLines, ParquetFile
from sonde.data.tar_files import TarFile
from sonde.data.text import Long
from sonde.data.training_rows import whole_rows
from sonde.files.copies import local_copy
from sonde.files.durable import require_local
from sonde.files.places import Place

_log = logging.getLogger("sonde")

LONG: tuple[Long, ...] = get_args(Long)
AUTO = "auto"
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""Tables of a folder of images that say more of each file, as ``imagefolder`` of datasets does."""
TABLES = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": JsonLines,
    ".csv": CsvFile,
    ".tsv": CsvFile,
}


def open_inputs(
    model: Model,
    data: Any,
    *,
    batch_size: int | str = "auto",
    max_length: int | None = None,
    long: str = "auto",
    limit: int | None = None,
    text_column: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    group_column: str | None = None,
    target_column: str | None = None,
    span: str | Sequence[str] | None = None,
    ignore_columns: str | Sequence[str] | None = None,
    number_columns: str | Sequence[str] | None = None,
    classes: str | Sequence[str] | None = None,
    new_classes: bool = False,
    split: str | None = None,
    image_size: int | Sequence[int] | None = None,
    image_mean: float | Sequence[float] | None = None,
    image_std: float | Sequence[float] | None = None,
    skip_bad: bool = False,
    seed: int = 0,
    logits: bool = False,
    new_tokens: int = 0,
    beams: int = 1,
) -> ItemInputs:
    """Return the data as inputs of the model, listed in one pass and read unit by unit.

    Parameters
    ----------
    model : Model
        Model that the inputs are prepared for.
    data : str, path, array, or iterable
        Image folder, JSONL, CSV or Parquet file, tar file of WebDataset, or several (a list of
        names, a pattern such as ``shards/*.jsonl`` or ``shards/{000..127}.tar``, a folder of
        tables), ``.npy``, ``.npz`` or ``.safetensors`` file, data set on disk or by name,
        ``sonde:digits``, ``sonde:stdlib``; in Python also items without a batch axis, ``(X, y)``, a
        dictionary of arrays or lists of one length, a frame, a data set of ``datasets``, streamed
        or not, a ``ray.data.Dataset``, the ``DataLoader`` of a data set, a generator, or a function
        that returns the items anew.
    batch_size : int or "auto"
        ``auto`` is 64, halved until the states of a batch fit into 1 GiB.
    max_length : int, optional
        Most tokens of one example; at most the model's context.
    long : {"auto", "chunk", "truncate", "error"}
        What happens to a longer text. ``auto`` truncates it if the model gives one answer, or one
        vector, for a whole text, as such models are deployed; else it is cut into chunks.
    limit : int, optional
        Read this many items: with labels a sample over the classes, else the first ones.
    text_column, image_column, label_column, id_column, group_column, target_column : str, optional
        Columns of a table; ``a,b`` names a pair of texts, or the labels of several heads.
    span : str or (str, str), optional
        The part of a text that counts for the reducers of steps: two columns with its characters
        (``start,end``), or two delimiters (``<think>,</think>``).
    ignore_columns : str or sequence of str, optional
        Columns that are no input, ``a,b``. Items of tensors are refused if the model does not take
        one of their columns.
    number_columns : str or sequence of str, optional
        Columns of a table of numbers that are one vector, in this order; others are left out. By
        default all of them, in the order of the table.
    classes : str or sequence of str, optional
        What the outputs of a classifier stand for, in their order, ``a,b`` or a file of names
        (``.txt``, ``.json``), if labels are texts and the model brings no names for them.
    new_classes : bool, default=False
        Accept labels that the model has no class for, as the second data set of a scan may have.
    split : str, optional
        The split that is read if the data have several and their name does not choose
        (``NAME/SPLIT``, ``NAME:SPLIT``). By default ``test``, else ``validation``, else ``train``.
    image_size, image_mean, image_std : number or sequence, optional
        Recipe for images if the model brings none.
    skip_bad : bool
        Leave out broken items and count them.
    seed : int
        Key of the draw that chooses the items of a limit and the pieces of ``sonde:stdlib``.
    logits : bool
        Whether logits are read, which makes batches larger.
    new_tokens, beams : int
        Tokens generated after each text, and beams; both make batches larger too.

    Raises
    ------
    InputError
        If the data do not exist, are broken, empty, or of a kind that the model does not read.
    """
    chosen = _check(model, batch_size, max_length, long, limit)
    arguments = {} if model.processor is not None else tensor_arguments(model.module)
    source, n_picked = open_source(data, skip_bad, Tuples(arguments, label_column), split)
    columns = (text_column, image_column, label_column, id_column, group_column, target_column)
    ignored, numbers = _names(ignore_columns), _names(number_columns)
    flags = Flags(*columns, span_of(span), ignored, numbers)
    images = ImageFlags.of(image_size, image_mean, image_std)
    reads, given = item_kind(model, images), names_of_classes(classes)
    source, sample = _sampled(source, flags, is_text=reads == "text")
    id2label = dict(enumerate(given)) or class_names(model)
    names, main = forward_names(model.module), main_input(model)

    def listed(sample: Sample) -> tuple[Layout, Encoder, Listing, Kept]:
        name = model.name or "the model"
        layout_read = layout(sample, reads, flags, names, name, source.name, main)
        prompt = source.prompt_column
        encoder = encoder_for(model, layout_read, source.base, images, max_length, chosen, prompt)
        kept = kept_items(source, None if layout_read.paired else layout_read.label, limit, seed)
        asked = {"id2label": id2label, "kept": kept, "skip_bad": skip_bad, "known": sample}
        asked |= {"arguments": names, "new_classes": new_classes, "is_told": bool(given)}
        return layout_read, encoder, list_source(source, encoder, layout_read, **asked), kept

    layout_read, encoder, listing, kept = listed(sample)
    if listing.late:
        layout_read, encoder, listing, kept = listed({**sample, **source.columns(listing.late)})
    if label_column is not None:
        is_number = model.task != "causal" and len(id2label or ()) < 2
        _check_labels(listing, label_column, is_number, source.name)
    if given and listing.labels.any and not listing.labels.own and not new_classes:
        strange = sorted({*listing.labels.names} - {*given})
        raise InputError(
            f"{source.name}: expected labels among the classes {', '.join(given)}, got "
            f"{', '.join(strange[:3])}. Name every output of the model, in order."
        )
    encoder = encoder.settled(row for _, row in kept.of_source(source))
    listing = listing if n_picked is None else pick(listing, n_picked, seed)
    size = (
        batch_size_for(model, listing, encoder, logits, new_tokens, beams)
        if batch_size == "auto"
        else int(batch_size)
    )
    _log.info(
        "data %s: %s, %s in a forward", source.name, plural(len(listing.label), "example"), size
    )
    typed = {
        "text_column": text_column,
        "image_column": image_column,
        "target_column": target_column,
        "max_length": max_length,
        "long": None if long == AUTO else chosen,
        "span": flags.span,
        "ignore_columns": ignored or None,
        "classes": given or None,
        "number_columns": layout_read.inputs if isinstance(encoder, NumbersEncoder) else None,
        "image_size": images.size,
        "image_mean": images.mean,
        "image_std": images.std,
    }
    room = (new_tokens, beams) if batch_size == "auto" else None
    return ItemInputs(source, encoder, layout_read, listing, size, skip_bad, _as_json(typed), room)


def with_room_for_logits(model: Model, inputs: ItemInputs) -> ItemInputs:
    """Return inputs in batches whose logits fit too; a size that the user gave is kept.

    Parameters
    ----------
    model : Model
    inputs : ItemInputs
        Opened for the model, perhaps before a method asked for its logits.
    """
    if inputs.room is None:
        return inputs
    size = batch_size_for(model, inputs.listing, inputs.encoder, True, *inputs.room)
    return replace(inputs, batch_size=min(size, inputs.batch_size))


def _sampled(source: Source, flags: Flags, *, is_text: bool) -> tuple[Source, Sample]:
    """Return a source with the first values of its columns; fine-tuning rows as whole texts."""
    sample = source.columns(flags.names())
    if not sample and source.n_bad == 0:
        raise InputError(f"{source.name} is empty: it has no item. Pass data with items.")
    whole = whole_rows(source, sample, flags.text) if is_text else source
    return whole, sample if whole is source else whole.columns(flags.names())


def _check_labels(listing: Listing, column: str, may_be_numbers: bool, source: str) -> None:
    """Raise if a label column holds neither labels, lists of labels, nor numbers."""
    labels = listing.labels
    if labels.any or labels.several or (may_be_numbers and listing.target is not None):
        return
    reason = labels.reason or "every value is empty, null or -1"
    raise InputError(f"{source}: column {column!r} gives no label: {reason}.")


def _names(columns: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the columns named by ``a,b`` or a sequence."""
    parts = columns.split(",") if isinstance(columns, str) else columns or ()
    return tuple(part.strip() for part in parts if part.strip())


def names_of_classes(classes: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of classes in their order: ``a,b``, a sequence, or a file of names.

    A file has one name a line (``.txt``), or is a JSON list or object of names by number.

    Raises
    ------
    InputError
        If the file does not exist or holds no names.
    """
    path = Path(classes).expanduser() if isinstance(classes, str) else None
    if path is None or path.suffix not in (".txt", ".json"):
        return _names(classes)
    if not path.is_file():
        raise InputError(f"names of classes: {no_file(path)}. Pass a file or the names themselves.")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"names of classes: {path} cannot be read: {reason_of(error)}.") from None
    if path.suffix == ".txt":
        names = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        names = _numbered_names(text)
    if not names:
        raise InputError(
            f"expected names of classes in {path}: one name on each line, or a JSON list or "
            "object by number."
        )
    return tuple(names)


def _numbered_names(text: str) -> list[str]:
    """Return the names in a JSON list, or in an object with keys from 0; else none."""
    try:
        held = json.loads(text)
    except ValueError:
        return []
    if isinstance(held, dict):
        held = [held.get(str(i)) for i in range(len(held))]
    if not isinstance(held, list):
        return []
    # torchvision writes ["n01440764", "tench"] for each class
    names = [n[-1] if isinstance(n, list) and n else n for n in held]
    return [n.strip() for n in names if isinstance(n, str)] if None not in names else []


def _as_json(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given options, tuples as lists."""
    given = {name: value for name, value in typed.items() if value is not None}
    return {n: list(v) if isinstance(v, tuple) else v for n, v in given.items()}


def open_source(
    data: Any, skip_bad: bool = False, tuples: Tuples = PAIRS, split: str | None = None
) -> tuple[Source, int | None]:
    """Return the rows that a user names, and the number of examples to pick (None = all).

    ``tuples`` gives the meaning of the members of items that are tuples. ``split`` is the split to
    read if the name of a data set does not choose.
    """
    if isinstance(data, Source):
        return data, None
    if hub.is_live_dataset(data):
        return hub.from_live(data, split), None
    if is_ray_data(data):
        return Iterated(RayRows(data), tuples), None
    if isinstance(data, np.ndarray | torch.Tensor):
        return ArrayRows({"x": data}, "array"), None
    if isinstance(data, Mapping):
        return ArrayRows(data, type(data).__name__), None
    files = tables_of(data)
    if files is not None:
        return open_several(files, partial(open_file, skip_bad=skip_bad)), None
    if not isinstance(data, str | Path):
        return features_and_labels(data) or Iterated(data, tuples), None
    if isinstance(data, str) and is_shipped(data):
        return shipped_source(data, split)
    return _from_path(data, skip_bad, split), None


def _from_path(data: str | Path, skip_bad: bool, split: str | None) -> Source:
    path = path_of(data)
    if isinstance(path, Place):
        return _from_place(path, skip_bad, split)
    if path.is_dir():
        return _from_folder(path, split)
    if path.is_file():
        return open_file(path, skip_bad)
    if path.parent.is_dir() and hub.is_saved_dataset(path.parent):
        return hub.from_disk(path.parent, path.name)
    require_path(data)
    return hub.from_hub(str(data), split)


def _from_place(place: Place, skip_bad: bool, split: str | None) -> Source:
    """Return a table as it lies in object storage, or the local copy of a folder or of arrays."""
    suffix = place.suffix.lower()
    if suffix in _tables() and place.is_file():
        return open_file(place, skip_bad)
    copy = local_copy(place)
    return _from_folder(copy, split) if copy.is_dir() else open_file(copy, skip_bad)


def _from_folder(path: Path, wanted: str | None) -> Source:
    """Return a saved data set, the folder's own table of images, or its images.

    Subfolders that are splits are no classes.
    """
    if hub.is_saved_dataset(path):
        return hub.from_disk(path, None, wanted)
    captions = next((path / n for n in METADATA if (path / n).is_file()), None)
    if captions is not None:
        return open_file(captions)
    splits = split_folders(path)
    if splits:
        chosen = chosen_split(str(path), splits, None, wanted)
        return MediaFolder(path / chosen).of_split(chosen, splits, False)
    beside = split_folders(path.parent) if path.name in (*FIRST, *TRAIN) else []
    folder = MediaFolder(path)
    return folder.of_split(path.name, beside, True) if beside else folder


def require_path(data: str | Path) -> None:
    """Raise if a path does not exist; names of data sets are accepted.

    Raises
    ------
    InputError
        With near names in the same folder.
    StoreError
        If it is an address of an unknown kind, or its service does not answer.
    """
    path = path_of(data)
    if isinstance(path, Place):
        if not path.exists():
            raise InputError(f"data: there is no object {path}, and none below it.")
        return
    require_local(data)
    if path.exists() or (path.parent.is_dir() and hub.is_saved_dataset(path.parent)):
        return
    is_file = path.suffix.lower() in _suffixes() or (bool(path.suffix) and path.parent == Path())
    if is_file or path.is_absolute() or str(data).startswith((".", "~")):
        folder = path.parent if path.parent.is_dir() else Path()
        neighbours = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        raise InputError(f"data: no such file or folder: {data}.{near(path.name, neighbours)}")


def open_file(path: Path, skip_bad: bool = False) -> Source:
    """Return the rows of a table or of arrays.

    Raises
    ------
    InputError
        If the file is empty, or of a kind that is not read.
    """
    suffix = path.suffix.lower()
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty. Pass data with items.")
    if suffix in TABLES:
        return TABLES[suffix](path, skip_bad)
    if suffix in (".parquet", ".pq"):
        return ParquetFile(path)
    if suffix == ".tar":
        return TarFile(path)
    if suffix in ARRAY_SUFFIXES:
        return array_source(path)
    if suffix in (".pkl", ".pickle", ".pt", ".pth", ".bin"):
        raise InputError(
            f"{path} is a pickle by its name ({suffix}), which can run any code when it is opened, "
            "so it is not read. Save it as .npz or .safetensors."
        )
    raise InputError(
        f"{path}: expected a file that ends in one of {', '.join(sorted(_suffixes()))}."
    )


def _suffixes() -> set[str]:
    return {*_tables(), *ARRAY_SUFFIXES}


def _tables() -> tuple[str, ...]:
    return (*TABLES, ".parquet", ".pq", ".tar")


def tables_of(data: Any) -> list[Path] | None:
    """Return the tables that a list, a pattern or a folder of tables names; None for other data."""
    return None if is_described(data) else table_files(data, _tables())


def is_described(data: Any) -> bool:
    """Return whether a folder says itself how it is read: a saved data set, or one of media."""
    path = Path(data) if isinstance(data, str | Path) and not isinstance(data, Place) else None
    if path is None or not path.is_dir():
        return False
    return hub.is_saved_dataset(path) or any((path / name).is_file() for name in METADATA)


def class_names(model: Model) -> Mapping[int, str] | None:
    """Return a classifier's own names of its outputs, or None."""
    if model.task not in ("classifier", "image_classifier"):
        return None
    names = getattr(model.config, "id2label", None)
    return {int(k): str(v) for k, v in names.items()} if names else None


def _check(
    model: Model, batch_size: int | str, max_length: int | None, long: str, limit: int | None
) -> Long:
    if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(
            f"open_inputs: expected batch_size 'auto' or at least 1, got {batch_size!r}."
        )
    if max_length is not None and max_length < 1:
        raise InputError(f"open_inputs: expected max_length of at least 1, got {max_length}.")
    if limit is not None and limit < 1:
        raise InputError(f"open_inputs: expected limit of at least 1, got {limit}.")
    if long == AUTO:
        is_whole = model.task == "classifier" or model.reducer != AUTO
        return "truncate" if is_whole else "chunk"
    for choice in LONG:
        if choice == long:
            return choice
    raise InputError(f"open_inputs: expected long among {AUTO}, {', '.join(LONG)}, got {long!r}.")
