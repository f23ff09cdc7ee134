"""Turn rows of a source into model arguments: the interface of every kind of item."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.data.sources import Row

ANY = "**"
_WRAPPED = ("_orig_mod", "module", "base_model", "model")
_LOSS_ONLY = frozenset({"labels", "next_sentence_label", "start_positions", "end_positions"})


@dataclass(frozen=True)
class Piece:
    """The part of an item that becomes an example: its tokens, and their positions.

    Parameters
    ----------
    first : int
        Position in the item of its first token.
    length : int
        Real tokens, special ones included; 0 if that is not known before the batch is made.
    truncated : int
        Tokens of the item that were cut off.
    """

    first: int = 0
    length: int = 0
    truncated: int = 0


@dataclass(frozen=True)
class Prepared:
    """One example that waits for its batch."""

    value: Any
    length: int = 1


class EmptyText(InputError):
    """A text without tokens, which is skipped and counted."""


class LongText(InputError):
    """A text with more tokens than the model reads, where the user asked for an error."""


@dataclass(frozen=True)
class Collated:
    """The inputs of one forward pass, and the examples that could not be encoded."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    mask: Bool[Tensor, "_example _pos"] | None = None
    decoder_mask: Bool[Tensor, "_example _pos2"] | None = None
    special: Bool[Tensor, "_example _pos"] | None = None
    segment: Int[Tensor, "_example _pos"] | None = None
    grid: tuple[int, int] | None = None
    packed: dict[str, Int[Tensor, "_example"]] = field(default_factory=dict)
    placeholder: Bool[Tensor, "_example _pos"] | None = None
    completion: Bool[Tensor, "_example _pos"] | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    token_axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    bad: dict[int, str] = field(default_factory=dict)


class Encoder(ABC):
    """Turns the rows of one kind of item into model inputs.

    Whatever a single item has wrong is raised as an ``InputError`` without its place, which the
    caller adds.
    """

    kind: str

    @property
    def even(self) -> bool:
        """True if a batch may only hold examples of equal length, without padding."""
        return False

    @property
    def pads(self) -> bool:
        """True if the encoder itself pads items."""
        return False

    @property
    def counts_completions(self) -> bool:
        """True if items are prompts with completions, and a loss counts the completions only."""
        return False

    @abstractmethod
    def key(self, row: Row) -> bytes:
        """Return the 16-byte id of the input alone, as stored."""

    def missing(self, row: Row) -> tuple[str, ...]:
        """Return the input columns that have no value in a row."""
        return ()

    @abstractmethod
    def size(self, row: Row) -> int:
        """Return the bytes of the input as stored."""

    def other_content(self, row: Row) -> bytes:
        """Return a row's other content that shapes batches, for the fingerprint."""
        return b""

    def pieces(self, rows: Sequence[Row]) -> list[list[Piece]]:
        """Return the examples that each row is cut into."""
        return [[Piece()] for _ in rows]

    def settled(self, rows: Iterable[Row]) -> "Encoder":
        """Return the encoder with settings found from all rows; by default unchanged."""
        return self

    @abstractmethod
    def prepare(self, rows: Sequence[Row], wanted: Sequence[tuple[int, int]]) -> list[Prepared]:
        """Return the examples ``(row, piece)`` of a unit."""

    @abstractmethod
    def collate(self, items: Sequence[Prepared]) -> Collated:
        """Return the inputs of one forward pass."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return everything that shapes the inputs, as JSON."""

    def notes(self) -> list[str]:
        """Return notes for the user, one sentence each."""
        return []


def forward_names(module: nn.Module) -> frozenset[str]:
    """Return the parameter names of a module's ``forward``, or of the module that it wraps.

    ``ANY`` is among them if ``forward`` seems to pass on all other arguments: it has ``**kwargs``
    and does not name the attention mask. A transformers model names all arguments that it reads;
    arguments for its loss alone (``labels``) are left out.
    """
    inner = _unwrapped(module)
    parameters = _parameters(inner)
    of_library = hasattr(inner, "main_input_name")
    names_all = of_library or "attention_mask" in parameters
    hands_on = not names_all and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    names = frozenset(parameters) - (_LOSS_ONLY if of_library else frozenset())
    return names | ({ANY} if hands_on else set())


def tensor_arguments(module: nn.Module) -> dict[str, bool]:
    """Return ``forward``'s positional parameters that may be tensors, and whether they must be.

    A parameter whose default is a number, a text or a flag is left out. Of a transformers model
    only the main input counts, because its other inputs are passed by name.
    """
    inner = _unwrapped(module)
    if hasattr(inner, "main_input_name"):
        return {str(inner.main_input_name): True}
    return {
        name: p.default is p.empty
        for name, p in _parameters(inner).items()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        and (p.default is p.empty or p.default is None or isinstance(p.default, Tensor))
    }


def _parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(module.forward).parameters


def _unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside a wrapper that passes on all arguments, or the module itself."""
    if all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in _parameters(module).values()):
        for name in _WRAPPED:
            inner = getattr(module, name, None)
            if isinstance(inner, nn.Module):
                return _unwrapped(inner)
    return module


def dtype_of(module: nn.Module) -> torch.dtype | None:
    """Return the widest type of a model's weights, or None if it has no floating-point weights."""
    types = {p.dtype: None for p in module.parameters() if p.is_floating_point()}
    return max(types, key=lambda dtype: dtype.itemsize, default=None)


def takes(name: str, names: frozenset[str]) -> bool:
    """Return whether a ``forward`` with these parameters accepts an argument of this name."""
    return name in names or ANY in names


def called(main: str, x: Any, names: frozenset[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return args and kwargs: the input by its name if ``forward`` has it, else first."""
    return ((), {main: x}) if main in names else ((x,), {})
