"""Rows of several sites, aligned by shared columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.columns import declared
from sonde.core.errors import InputError
from sonde.core.hashing import Purpose, base_hashes, draws, splitmix64
from sonde.core.site import Reducer, Site

Head = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class SiteSchema:
    """Description of one kind of rows: its site, reducer, width, and order in the model.

    Parameters
    ----------
    key : str
        The name under which batches carry these rows: the site's text, or ``site|reducer``.
    site, reducer : Site, Reducer
        What is read and how it becomes rows.
    dim : int
        Width of a row.
    dtype : str
        Type in which the model produced it, e.g. ``"bfloat16"``.
    module : str
        Class name of the module at the site.
    axes : str
        The raw output's axes, e.g. ``"row pos dim"`` or ``"row dim h w"``.
    prefix, suffix : int
        Tokens before and behind the patches of an image: class, distillation, register tokens.
    cls : int or None
        Which of these tokens is the class token.
    """

    key: str
    site: Site
    reducer: Reducer
    dim: int
    dtype: str = "float32"
    module: str = ""
    axes: str = "row dim"
    prefix: int = 0
    suffix: int = 0
    cls: int | None = None


def special_tokens(raw: Mapping[str, Any]) -> tuple[int, int, int | None]:
    """Return ``prefix``, ``suffix`` and ``cls`` of a site, as stored.

    Old headers have ``prefix`` alone; if it is not 0, the first token is the class token.
    """
    prefix = int(raw.get("prefix", 0))
    cls = raw.get("cls", 0 if prefix else None)
    return prefix, int(raw.get("suffix", 0)), None if cls is None else int(cls)


@dataclass(frozen=True)
class Batch:
    """Rows of some examples at each site, and the columns that align them.

    Sites may differ in their rows: ``example[key]`` says which example (index into ``ids``) a row
    belongs to and ``position[key]`` where in it the row stands. All other columns exist once per
    example and are expanded on demand.

    Parameters
    ----------
    rows : dict of str to Float[Tensor, "row dim"]
        For each kind of rows (see ``SiteSchema.key``).
    ids : sequence of str
        Printable id of each example.
    keys : sequence of bytes
        What is hashed for each example: 16 bytes of content, or the UTF-8 text of the id column.
    order : Int[Tensor, "example"]
        Index of each example in the planned order.
    scattered : bool, default=False
        Whether each entry is a single row, as in plain arrays. Rows of equal id and occurrence are
        then one example.
    occurrence : Sequence[int] | Int[Tensor, 'example']
        Number that tells equal examples apart, from 0 on.
    example : dict[str, Int[Tensor, '_row']]
        Index of the example of each row, by site.
    position : dict[str, Int[Tensor, '_row']]
        Position of each row in its document or image, by site.
    group_keys : Sequence[bytes]
        Key of each example's group.
    label : Int[Tensor, 'example']
        Class of each example; -1 for none.
    logits : Float[Tensor, 'example class'], optional
        Logits of the model for each example, if they were read.
    grad : dict[str, Float[Tensor, '_row _dim']], optional
        Gradient of the objective at each row, by site.
    grid : dict[str, Int[Tensor, '_row 2']], optional
        Line and column of each row in its image, by site.
    special : dict[str, torch.Tensor], optional
        Whether each row is a special token, by site.
    pair : Int[Tensor, 'example'], optional
        Hash of the pair that each example belongs to, if the examples are paired.
    side : Int[Tensor, 'example'], optional
        Index of each example within its pair.
    length : Int[Tensor, 'example'], optional
        Number of tokens or patches of each example.
    head : tuple[torch.Tensor, torch.Tensor], optional
        Weight and bias of the final linear layer, if the model has one.
    seed : int, default=0
        Key of the hash of rows.
    extra : dict[str, torch.Tensor], optional
        Further columns, by name.
    sink : dict[str, torch.Tensor], optional
        Whether each row is a sink token, by site.
    """

    rows: dict[str, Float[Tensor, "_row _dim"]]
    ids: Sequence[str]
    keys: Sequence[bytes]
    order: Int[Tensor, "example"]
    occurrence: Sequence[int] | Int[Tensor, "example"]
    example: dict[str, Int[Tensor, "_row"]]
    position: dict[str, Int[Tensor, "_row"]]
    group_keys: Sequence[bytes]
    label: Int[Tensor, "example"]
    logits: Float[Tensor, "example class"] | None = None
    grad: dict[str, Float[Tensor, "_row _dim"]] = field(default_factory=dict[str, Tensor])
    grid: dict[str, Int[Tensor, "_row 2"]] = field(default_factory=dict[str, Tensor])
    special: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    sink: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    pair: Int[Tensor, "example"] | None = None
    side: Int[Tensor, "example"] | None = None
    length: Int[Tensor, "example"] | None = None
    head: Head | None = None
    seed: int = 0
    extra: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    scattered: bool = False

    def __len__(self) -> int:
        return len(self.order)

    @cached_property
    def group(self) -> Int[Tensor, "example"]:
        """64-bit hash of each example's group."""
        return words_of(self.group_keys)

    @cached_property
    def group_draw(self) -> Int[Tensor, "example"]:
        """Sampling key of each example's group, for the purpose ``sample``."""
        own = self.group_keys is self.keys
        base = self._base("sample") if own else base_hashes(self.group_keys, "sample", self.seed)
        zero = np.zeros(len(base), dtype=np.uint64)
        return draws(base, zero, zero)

    @cached_property
    def split_draw(self) -> Int[Tensor, "example"]:
        """Sampling key of each example's group, for the purpose ``split``."""
        base = base_hashes(self.group_keys, "split", self.seed)
        zero = np.zeros(len(base), dtype=np.uint64)
        return draws(base, zero, zero)

    def _base(self, purpose: Purpose) -> np.ndarray:
        if purpose not in self._bases:
            self._bases[purpose] = base_hashes(self.keys, purpose, self.seed)
        return self._bases[purpose]

    @cached_property
    def _bases(self) -> dict[str, np.ndarray]:
        return {}

    def draw(self, key: str, purpose: Purpose = "sample") -> Int[Tensor, "_row"]:
        """Return the sampling key of each row of ``key``, cached by row layout and purpose."""
        layout = (id(self.example[key]), id(self.position[key]), purpose)
        if layout not in self._draws:
            example = self.example[key].numpy()
            self._draws[layout] = draws(
                self._base(purpose)[example],
                self.position[key].numpy(),
                np.asarray(self.occurrence)[example],
            )
        return self._draws[layout]

    @cached_property
    def _draws(self) -> dict[tuple[int, int, str], Tensor]:
        return {}

    @cached_property
    def _words(self) -> Int[Tensor, "example 2"]:
        return words_of_keys(self.keys)

    def column(self, name: str, key: str) -> Any:
        """Return a column with a number for each row of ``key`` (``head``: the model's constants).

        Raises
        ------
        InputError
            If the stream does not bring this column.
        """
        if name == "x":
            return self.rows[key]
        if name == "head":
            return self._require(self.head, name)
        if name in ("grad", "grid"):
            return self._require(getattr(self, name).get(key), name)
        if name == "position":
            return self.position[key]
        if name == "draw":
            return self.draw(key)
        if name in ("special", "sink"):
            marks = (self.special if name == "special" else self.sink).get(key)
            return (
                torch.zeros_like(self.position[key], dtype=torch.bool) if marks is None else marks
            )
        layout = (name, id(self.example[key]))
        if layout not in self._spread:
            self._spread[layout] = self._per_example(name)[self.example[key]]
        return self._spread[layout]

    @cached_property
    def _spread(self) -> dict[tuple[str, int], Tensor]:
        return {}

    def _per_example(self, name: str) -> Tensor:
        """Return one number for each example."""
        per_example = {
            "label": self.label,
            "logits": self.logits,
            "ids": None,
            "group": None,
            "group_draw": None,
            "order": self.order,
            "piece": torch.zeros_like(self.order) if self.scattered else self.order,
            "occurrence": torch.as_tensor(np.asarray(self.occurrence))
            if name == "occurrence"
            else None,
            "pair": self.pair,
            "side": self.side,
            "length": self.length,
        }
        if name == "example" and name not in self.extra:
            return self._example_numbers() if self.scattered else self.order
        if name not in per_example:
            return torch.as_tensor(self._require(self.extra.get(name), name))
        computed = {"ids": "_words", "group": "group", "group_draw": "group_draw"}
        values = getattr(self, computed[name]) if name in computed else per_example[name]
        return self._require(values, name)

    def _example_numbers(self) -> Tensor:
        """Return a hash of each entry's id and occurrence."""
        words = self._words.numpy().view(np.uint64)
        occurrence = np.asarray(self.occurrence, dtype=np.int64).view(np.uint64)
        mixed = splitmix64(words[:, 0] ^ splitmix64(words[:, 1] ^ splitmix64(occurrence)))
        return torch.as_tensor(mixed.view(np.int64))

    @staticmethod
    def _require(value: Any, name: str) -> Any:
        if value is None:
            raise InputError(
                f"a method needs the column {name!r}, which this stream does not have: "
                f"{declared(name).missing}."
            )
        return value


def words_of_keys(keys: Sequence[bytes]) -> Int[Tensor, "example 2"]:
    """Return example ids in the form of the column ``ids``: two 64-bit words each."""
    raw = [k if len(k) == 16 else blake2b(k, digest_size=16).digest() for k in keys]
    return torch.as_tensor(np.frombuffer(b"".join(raw), dtype="<i8").reshape(-1, 2).copy())


def word_of(key: bytes) -> int:
    """Return a group key's signed 64-bit hash."""
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little", signed=True)


def words_of(keys: Sequence[bytes]) -> Int[Tensor, "key"]:
    """Return the signed 64-bit hash of each group key."""
    return torch.tensor([word_of(key) for key in keys], dtype=torch.int64)
