"""Tensors of a model's folder, under their names in the loaded model."""

from collections.abc import Mapping
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from sonde.data._checkpoint_model import skeleton
from sonde.data._stored_names import Joined, StoredNames
from sonde.weights._weight_file import DTYPES, TensorEntry
from sonde.weights.folder import CONFIG, ModelFolder


@final
class LoadedFolder:
    """A model's folder, with tensors named as in the loaded model.

    Parameters
    ----------
    folder : ModelFolder
    """

    def __init__(self, folder: ModelFolder) -> None:
        self.folder = folder
        has_config = (folder.path / CONFIG).is_file()
        shell = skeleton(folder.path) if has_config else None
        shapes = {name: empty(self.stored_entry(name)) for name in folder.places}
        self.names = StoredNames(shell, shapes)
        self._last: tuple[Joined, dict[str, Tensor]] | None = None

    @cached_property
    def places(self) -> Mapping[str, str]:
        """The stored name of each tensor that is loaded without conversion."""
        return {loaded: stored for stored, loaded in self.names.loaded.items()}

    @cached_property
    def joined(self) -> Mapping[str, Joined]:
        """The stored tensors behind each tensor that is computed at loading."""
        return {name: one for one in self.names.joined for name in one.loaded}

    @cached_property
    def files(self) -> Mapping[str, str]:
        """The file of each loaded tensor; of the first part if it has several."""
        stored = {**self.places, **{name: one.stored[0] for name, one in self.joined.items()}}
        return {name: self.folder.places[place] for name, place in stored.items()}

    def named_like(self, name: str) -> list[str]:
        """Return the loaded tensors that match another class's tensor name, with any prefix."""
        if name in self.files:
            return [name]
        return [n for n in self.files if name.endswith(f".{n}") or n.endswith(f".{name}")]

    def tensor(self, name: str) -> Tensor:
        """Return a loaded tensor in its stored dtype."""
        if name not in self.joined:
            return self.stored(self.places[name])
        one = self.joined[name]
        if self._last is None or self._last[0] is not one:  # the parts of one model can be large
            self._last = one, one.load({stored: self.stored(stored) for stored in one.stored})
        return self._last[1][name]

    def entry(self, name: str) -> TensorEntry:
        """Return the entry of a file for a loaded tensor."""
        if name not in self.joined:
            return self.stored_entry(self.places[name])
        like = self.joined[name].loaded[name]
        return TensorEntry.later(like.dtype, like.shape, lambda: self.tensor(name).to(like.dtype))

    def stored(self, name: str) -> Tensor:
        """Return a stored tensor by its name in the folder."""
        return self.folder.weights[self.folder.places[name]].tensor(name)

    def stored_entry(self, name: str) -> TensorEntry:
        """Return the entry of a stored tensor by its name in the folder."""
        return self.folder.weights[self.folder.places[name]].entries[name]


def empty(entry: TensorEntry) -> Tensor:
    """Return an empty tensor of an entry's dtype and shape."""
    return torch.empty(entry.shape, dtype=DTYPES.get(entry.dtype), device="meta")
