"""Rows of a store as a data set of torch, for training on states that were written before.

The order of all rows follows from seed, epoch and window alone, never from ranks or workers. A rank
takes its part of each joint batch, and a worker every n-th of them: no row comes twice, none is
lost, and two ranks see what one process with the doubled batch sees.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from sonde.core.errors import InputError, StateError
from sonde.files.places import Place


@runtime_checkable
class NumberedRows(Protocol):
    """Rows that are read by their numbers, as those of a ``Store``."""

    directory: Path

    def n_rows(self, key: str | None = None) -> int:
        """Return the number of rows of a site."""
        ...

    def take(self, rows: Any, key: str | None = None) -> Tensor:
        """Return some rows of a site."""
        ...


@final
class RowBatches(IterableDataset[dict[str, Tensor]]):
    """Batches of rows of a store; each row comes to a single rank and worker.

    A batch is ``{"x": rows, "row": their numbers in the order of the data}``. Hand it to
    ``DataLoader(batches, batch_size=None, num_workers=...)`` or iterate over it.

    Parameters
    ----------
    store : NumberedRows
        Store whose rows are read.
    key : str or None
        The kind of rows (``SiteSchema.key``); None is the first.
    batch_size : int
        Rows of a batch of one rank.
    shuffle : int
        Rows of a window: windows come in random order, and so do the rows of each; 0 keeps the
        order of the data. In object storage a window is read at once and held in memory.
    seed : int
        Seed of the order.
    rank : int or None
        Number of this process; None asks ``torch.distributed``, and is 0 without it.
    world_size : int or None
        Number of processes; None asks ``torch.distributed``, and is 1 without it.

    Raises
    ------
    InputError
        If a number is out of range, or there are fewer rows than processes.
    """

    def __init__(
        self,
        store: NumberedRows,
        key: str | None,
        batch_size: int,
        shuffle: int,
        seed: int,
        rank: int | None,
        world_size: int | None,
    ) -> None:
        ranks = _ranks()
        self.rank = ranks[0] if rank is None else rank
        self.world_size = ranks[1] if world_size is None else world_size
        self._store, self._key, self._n_rows = store, key, store.n_rows(key)
        self.batch_size, self.shuffle, self.seed, self.epoch = batch_size, shuffle, seed, 0
        self._next, self._origin = 0, 0
        self._held: tuple[int, Tensor] | None = None
        if batch_size < 1 or shuffle < 0:
            raise InputError(
                f"Store.torch: expected batch_size of at least 1 and shuffle of at least 0, got "
                f"{batch_size} and {shuffle}."
            )
        if not 0 <= self.rank < self.world_size:
            raise InputError(
                f"Store.torch: expected a rank below world_size, got {self.rank} and "
                f"{self.world_size}."
            )
        if self._n_rows < self.world_size:
            raise InputError(
                f"Store.torch: expected at least one row for each of {self.world_size} processes, "
                f"got {self._n_rows}."
            )

    def __len__(self) -> int:
        """Return the number of batches of this rank, the same for every rank."""
        whole, rest = divmod(self._n_rows, self.batch_size * self.world_size)
        return whole + (rest >= self.world_size) if whole else 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration; call it before each epoch.

        Parameters
        ----------
        epoch : int
            Number of the epoch.
        """
        self.epoch, self._next, self._origin = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """Return the place of the iteration: ``batches`` of this rank were handed out.

        With workers, count the batches that arrived and load ``{"epoch": e, "batches": n}``: the
        order depends neither on workers nor on ranks.
        """
        is_worker = get_worker_info() is not None
        origin = self._origin if is_worker else self._next
        return {"epoch": self.epoch, "batches": self._next, "origin": origin, **self._order()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration go on from a place.

        Parameters
        ----------
        state : dict of str to int
            What ``state_dict`` returned, or ``epoch`` and ``batches`` alone.

        Raises
        ------
        StateError
            If it is of another order of rows.
        """
        for name, value in self._order().items():
            if state.get(name, value) != value:
                raise StateError(
                    f"RowBatches.load_state_dict: expected {name}={value}, got {state[name]}. Use "
                    "the arguments of the run that saved it."
                )
        self.epoch, self._next = int(state["epoch"]), int(state["batches"])
        self._origin = int(state.get("origin", self._next))

    def _order(self) -> dict[str, int]:
        joint = self.batch_size * self.world_size
        return {"n_rows": self._n_rows, "joint": joint, "shuffle": self.shuffle, "seed": self.seed}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        own_number, n_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        windows = _Windows(self._n_rows, self.shuffle, self.seed, self.epoch)
        begun = self._next
        for number in range(begun, len(self)):
            if (number - self._origin) % n_workers != own_number:
                continue
            rows = windows.rows(*self._part(number))
            self._next = number + 1
            yield {"x": self._read(rows), "row": torch.from_numpy(rows)}
        self._next = self._origin = 0

    def _part(self, number: int) -> tuple[int, int]:
        """Return start and end of this rank's part of a joint batch; the last one is shared out."""
        joint = self.batch_size * self.world_size
        if number + 1 < len(self):
            start = number * joint + self.rank * self.batch_size
            return start, start + self.batch_size
        rest = self._n_rows - number * joint
        edges = [number * joint + rest * r // self.world_size for r in range(self.world_size + 1)]
        return edges[self.rank], edges[self.rank + 1]

    def _read(self, rows: Int[np.ndarray, "_row"]) -> Float[Tensor, "_row _dim"]:
        if not (isinstance(self._store.directory, Place) and self.shuffle):
            return self._store.take(rows, self._key)
        window = rows // self.shuffle
        out: Tensor | None = None
        for each in dict.fromkeys(window.tolist()):
            at = window == each
            rows_here = self._window(each)[torch.from_numpy(rows[at] - each * self.shuffle)]
            out = rows_here.new_empty(len(rows), rows_here.shape[1]) if out is None else out
            out[torch.from_numpy(at)] = rows_here
        assert out is not None, "a batch has rows"
        return out

    def _window(self, number: int) -> Tensor:
        if self._held is None or self._held[0] != number:
            start = number * self.shuffle
            rows = np.arange(start, min(start + self.shuffle, self._n_rows))
            self._held = number, self._store.take(rows, self._key)
        return self._held[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}


class _Windows:
    """The order of rows: windows in random order, and the rows of each in random order."""

    def __init__(self, n_rows: int, size: int, seed: int, epoch: int) -> None:
        self._size, self._seeds = size or n_rows, (seed, epoch)
        self._shuffled = size > 0
        n_windows = -(-n_rows // self._size)
        self._order = self._random(0).permutation(n_windows) if size else np.arange(n_windows)
        sizes = np.minimum(self._size, n_rows - self._order * self._size)
        self._ends = np.cumsum(sizes)
        self._last: tuple[int, np.ndarray] | None = None

    def _random(self, number: int) -> np.random.Generator:
        return np.random.default_rng([*self._seeds, number])

    def rows(self, start: int, stop: int) -> Int[np.ndarray, "_row"]:
        """Return the numbers of the rows at places ``start`` to ``stop`` of the order."""
        parts: list[np.ndarray] = []
        while start < stop:
            place = int(np.searchsorted(self._ends, start, side="right"))
            first = int(self._ends[place - 1]) if place else 0
            end = min(stop, int(self._ends[place]))
            parts.append(self._window(place)[start - first : end - first])
            start = end
        return np.concatenate(parts)

    @cached_property
    def _whole(self) -> np.ndarray:
        return np.arange(int(self._ends[-1]))

    def _window(self, place: int) -> np.ndarray:
        if not self._shuffled:
            return self._whole
        if self._last is None or self._last[0] != place:
            number = int(self._order[place])
            size = int(self._ends[place] - (self._ends[place - 1] if place else 0))
            rows = number * self._size + self._random(number + 1).permutation(size)
            self._last = place, rows.astype(np.int64)
        return self._last[1]


def _ranks() -> tuple[int, int]:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
