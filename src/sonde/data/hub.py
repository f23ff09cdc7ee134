"""Hugging Face data sets: saved to disk, or by name as ``NAME[:CONFIG][/SPLIT]``."""

import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, final

from sonde.core.errors import InputError
from sonde.core.wording import install_extra
from sonde.data._quiet import offline, quiet
from sonde.data.hub_stream import HubStream, undecoded
from sonde.data.sources import Row, Source
from sonde.data.splits import FIRST, TRAIN, chosen_split

HUB_SECONDS = 10.0
ROWS_AT_ONCE = 256
STREAMED = "IterableDataset"

_HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?$")


@final
class HubData(Source):
    """A ``datasets.Dataset``, memory-mapped, with undecoded images and recordings."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.name = name
        self._features = dict(dataset.features)
        self._found = undecoded(dataset, self._features)[0].with_format(None)

    def where(self, index: int) -> str:
        """Return the location of a row for messages."""
        return f"{self.name} {self.place(index)}"

    def place(self, index: int) -> str:
        """Return the location of a row for reports."""
        return f"row {index}"

    def rows(self) -> Iterator[Row]:
        """Yield the rows."""
        for block in self._found.iter(batch_size=ROWS_AT_ONCE):
            names, columns = list(block), list(block.values())
            for values in zip(*columns, strict=True):
                yield dict(zip(names, values, strict=True))

    def take(self, start: int, stop: int) -> list[Row]:
        """Return some rows."""
        return self._found.select(range(start, stop)).to_list()

    def labels(self, column: str) -> Iterator[Any]:
        """Yield one column."""
        for row in self._found.select_columns([column]):
            yield row[column]

    def names_of(self, column: str) -> Sequence[str] | None:
        """Return the names of a ``ClassLabel``."""
        return getattr(self._features.get(column), "names", None)


def from_disk(path: Path, split: str | None, wanted: str | None = None) -> Source:
    """Return a data set that ``save_to_disk`` wrote."""
    datasets = _library(str(path))
    with quiet():
        try:
            dataset = datasets.load_from_disk(str(path))
        except Exception as error:
            raise InputError(f"{path} is not a readable data set: {error}") from error
    return _one_split(dataset, split, wanted, str(path))


def from_live(items: Any, wanted: str | None = None) -> Source:
    """Return a data set of ``datasets``, streamed or not, or one split of a mapping of splits."""
    return _one_split(items, None, wanted, type(items).__name__)


def from_hub(name: str, wanted: str | None = None) -> Source:
    """Return a data set by name, from the cache without network.

    ``NAME[:CONFIG][/SPLIT]``; a word after the colon that is no configuration is a split.
    """
    path, config, split = _parts(name)
    try:
        dataset = _loaded(name, path, config)
    except InputError:
        if config is None or split is not None:
            raise
        dataset = _without_config(name, path, config)
        config, split = None, config
    return _one_split(dataset, split, wanted, path if config is None else f"{path}:{config}")


def _without_config(name: str, path: str, split: str) -> Any:
    """Return the data set whose split was given in a configuration's place, if it exists."""
    dataset = _loaded(name, path, None)
    if split not in getattr(dataset, "keys", list)():
        _loaded(name, path, split)
    return dataset


def _loaded(name: str, path: str, config: str | None) -> Any:
    datasets = _library(name)
    if not _HUB_NAME.match(path):
        raise InputError(f"data: no such file or folder: {name}.")
    with quiet():
        bars = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        try:
            with nullcontext() if _hub_has(path) else offline():
                dataset = datasets.load_dataset(path, config)
        except Exception as error:
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
            raise InputError(
                f"data: there is no file or folder {name}, and no data set of that name can be "
                f"loaded ({type(error).__name__}: {reason}). Check the path, or the name and the "
                "network."
            ) from error
        finally:
            if not bars:
                datasets.enable_progress_bars()
    return dataset


def _hub_has(path: str) -> bool:
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(path, timeout=HUB_SECONDS)
    except Exception:
        return False
    return True


def is_saved_dataset(path: Path) -> bool:
    """Return whether a folder was written by ``save_to_disk``."""
    return (path / "dataset_dict.json").exists() or (
        (path / "state.json").exists() and (path / "dataset_info.json").exists()
    )


def is_live_dataset(items: Any) -> bool:
    """Return whether an object is a data set of ``datasets``, or a mapping of them by split."""
    kind = type(items)
    named = kind.__name__ in ("Dataset", "DatasetDict", STREAMED, f"{STREAMED}Dict")
    return kind.__module__.startswith("datasets.") and named


def _library(name: str) -> Any:
    if importlib.util.find_spec("datasets") is None:
        raise InputError(f"data: {name} needs the package datasets. Run: {install_extra('hf')}")
    with quiet():
        import datasets
    return datasets


def _parts(name: str) -> tuple[str, str | None, str | None]:
    head, colon, tail = name.partition(":")
    if colon:
        config, _, split = tail.partition("/")
        return head, config or None, split or None
    pieces = head.split("/")
    if len(pieces) == 3 or (len(pieces) == 2 and pieces[1] in (*FIRST, *TRAIN)):
        return "/".join(pieces[:-1]), None, pieces[-1]
    return head, None, None


def _one_split(found: Any, split: str | None, wanted: str | None, name: str) -> Source:
    if not hasattr(found, "keys"):
        if split is not None:
            raise InputError(f"data: {name} has no splits. Leave out /{split}.")
        return _source(found, name)
    splits = list(found.keys())
    chosen = chosen_split(name, splits, split, wanted)
    source = _source(found[chosen], f"{name}/{chosen}")
    return source.of_split(chosen, splits, split is not None)


def _source(dataset: Any, name: str) -> Source:
    is_streamed = type(dataset).__name__ == STREAMED
    return HubStream(dataset, name) if is_streamed else HubData(dataset, name)
