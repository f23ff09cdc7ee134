"""Model inputs for the tests of the tap: token lists, images and plain tensors as ``Inputs``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sonde.core.hashing import bytes_key, tensor_key
from sonde.core.inputs import InputBatch, Inputs

SPECIAL = (0, 1, 2)


@dataclass(frozen=True, eq=False)
class Texts(Inputs):
    """Lists of token ids, padded to the longest of a batch."""

    items: Sequence[Sequence[int]]
    batch_size: int = 4
    side: str = "right"
    targets: Sequence[Sequence[int]] | None = None
    special: bool = True
    starts: Sequence[int] | None = None
    labels: Sequence[int] | None = None

    @property
    def group_keys(self) -> Sequence[bytes]:
        return [bytes_key(repr(list(i)).encode()) for i in self.items]

    @property
    def grouped(self) -> bool:
        return False

    def batches(self, start: int, stop: int) -> Iterator[InputBatch]:
        for first in range(start, stop, self.batch_size):
            yield self._batch(range(first, min(first + self.batch_size, stop)))

    def _batch(self, index: range) -> InputBatch:
        ids, mask = padded([self.items[i] for i in index], self.side)
        kwargs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long()}
        decoder_mask = None
        if self.targets is not None:
            kwargs["decoder_input_ids"], decoder_mask = padded([self.targets[i] for i in index])
        keys = self.group_keys[index.start : index.stop]
        special = torch.isin(ids, torch.tensor(SPECIAL)) & mask
        return InputBatch(
            (),
            kwargs,
            [f"text{i}" for i in index],
            keys,
            torch.tensor(list(index)),
            torch.zeros(len(index), dtype=torch.int64),
            keys,
            labels_of(self.labels, index),
            mask=mask,
            decoder_mask=decoder_mask,
            special=special if self.special else None,
            first=None if self.starts is None else torch.tensor([self.starts[i] for i in index]),
        )

    def identity(self) -> dict[str, Any]:
        return {"texts": [k.hex() for k in self.group_keys], "batch_size": self.batch_size}


@dataclass(frozen=True, eq=False)
class Arrays(Inputs):
    """Rows of one tensor, given under a keyword or as the only argument."""

    x: Tensor
    keyword: str | None = None
    batch_size: int = 4
    labels: Sequence[int] | None = None
    mask: Tensor | None = None
    more: dict[str, Tensor] = field(default_factory=dict)

    @property
    def group_keys(self) -> Sequence[bytes]:
        return [tensor_key(row) for row in self.x]

    @property
    def grouped(self) -> bool:
        return False

    def batches(self, start: int, stop: int) -> Iterator[InputBatch]:
        for first in range(start, stop, self.batch_size):
            index = range(first, min(first + self.batch_size, stop))
            part = slice(index.start, index.stop)
            x = self.x[part]
            kwargs = {name: value[part] for name, value in self.more.items()}
            keys = self.group_keys[part]
            yield InputBatch(
                () if self.keyword else (x,),
                kwargs | ({self.keyword: x} if self.keyword else {}),
                [f"item{i}" for i in index],
                keys,
                torch.tensor(list(index)),
                torch.zeros(len(index), dtype=torch.int64),
                keys,
                labels_of(self.labels, index),
                mask=None if self.mask is None else self.mask[part],
            )

    def identity(self) -> dict[str, Any]:
        return {"array": tensor_key(self.x).hex()}


def labels_of(labels: Sequence[int] | None, index: range) -> Tensor:
    return torch.tensor([-1 if labels is None else labels[i] for i in index])


def padded(items: Sequence[Sequence[int]], side: str = "right") -> tuple[Tensor, Tensor]:
    longest = max(len(i) for i in items)
    ids = torch.zeros(len(items), longest, dtype=torch.int64)
    mask = torch.zeros(len(items), longest, dtype=torch.bool)
    for row, item in enumerate(items):
        part = slice(0, len(item)) if side == "right" else slice(longest - len(item), longest)
        ids[row, part] = torch.tensor(item)
        mask[row, part] = True
    return ids, mask


def texts(lengths: Sequence[int] = (7, 4, 6, 3, 5), seed: int = 0, **options: Any) -> Texts:
    """Return token lists that begin with the special token 1 and hold no other."""
    generator = torch.Generator().manual_seed(seed)
    items = [[1, *torch.randint(3, 61, (n - 1,), generator=generator).tolist()] for n in lengths]
    return Texts(items, **options)


def images(
    size: int, n: int = 5, channels: int = 3, keyword: str | None = "pixel_values"
) -> Arrays:
    x = torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))
    return Arrays(x, keyword)


def inputs_for(takes: str) -> Inputs:
    """Return five inputs of the kind that an architecture takes."""
    if takes == "text":
        return texts()
    if takes == "pair":
        return texts(targets=[[0, 5, 6], [0, 7], [0, 8, 9, 10], [0], [0, 11]])
    return images(int(takes.removeprefix("image")))
