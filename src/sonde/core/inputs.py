"""Inputs of a model: batches of tensors and their examples' columns."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor, nn

from sonde.core._shown import OneLine
from sonde.core.repacking import count_weights
from sonde.core.wording import plural


@dataclass(frozen=True, eq=False)
class Model:
    """A model that sonde can read, with its processor and its configuration.

    Parameters
    ----------
    module : nn.Module
        Module that maps inputs to outputs.
    processor : object or None
        Tokenizer or image processor; None for models that take tensors.
    config : object or None
        The Hugging Face configuration, where there is one.
    name : str
        What the user typed, for reports.
    task : {"causal", "classifier", "image_classifier", "encoder", "seq2seq", "tensor"}
        What its outputs mean and which reducer is the default.
    reducer : str, default="auto"
        How the model itself makes one row of the states of tokens; then it is the default.
    sites : tuple of str, default=()
        Sites that are read beside the blocks if no site is named: what the model answers.
    """

    module: nn.Module
    processor: Any = None
    config: Any = None
    name: str = ""
    task: str = "tensor"
    reducer: str = "auto"
    sites: tuple[str, ...] = ()

    def __repr__(self) -> str:
        name = repr(self.name) + ", " if self.name else ""
        n_parameters = count_weights(self.module)
        return (
            f"Model({name}{type(self.module).__name__}, {self.task}, {n_parameters:,} parameters)"
        )


@dataclass(frozen=True)
class InputBatch:
    """Inputs of one forward pass, and the columns of the examples in it.

    Parameters
    ----------
    args, kwargs : tuple, dict
        What the module is called with.
    mask, decoder_mask : Bool[Tensor, "example pos"] or None
        Real tokens on the (encoder's) and the decoder's token axis; None if nothing is padded.
    special : Bool[Tensor, "example pos"] or None
        Tokens that the tokenizer declares special, on the axis of ``mask``.
    sink : Bool[Tensor, "example pos"] or None
        Tokens with massive states, on the axis of ``mask``.
    segment : Int[Tensor, "example pos"] or None
        Which step of its example each token belongs to, on the axis of ``mask``; -1 = none.
    first : Int[Tensor, "example"] or None
        Position in its document of each example's first token (chunks); None = 0.
    grid : (int, int) or None
        Height and width in patches, where the inputs are images cut into patches.
    length, truncated : Int[Tensor, "example"] or None
        Real tokens of each example, and tokens that were cut off.
    packed : dict of str to Int[Tensor, "example"]
        Arguments whose first axis holds the rows of all examples one after the other (patches of
        images of different sizes): how many rows each example has.
    placeholder : Bool[Tensor, "example pos"] or None
        Tokens in whose place the model puts something else, such as patches of an image: it reads
        them and is not asked to predict them.
    completion : Bool[Tensor, "example pos"] or None
        Tokens of completions, where examples are a prompt and its completion: a loss counts only
        these. None if a loss counts every token.
    columns : dict
        Further columns with one entry per example (size, brightness, ...).
    token_axes : dict of str to tuple of int
        The axes of an argument that hold the tokens of ``mask``: two in the adjacency matrix of a
        graph, none in a second text with a mask of its own. Arguments without an entry are unknown.
    ids : Sequence[str]
        Identifier of each example.
    keys : Sequence[bytes]
        Hash of each example's identifier or content.
    order : Int[Tensor, 'example']
        Index of each example in the planned order.
    occurrence : Int[Tensor, 'example']
        Number that tells equal examples apart, from 0 on.
    group_keys : Sequence[bytes]
        Key of each example's group.
    label : Int[Tensor, 'example']
        Class of each example; -1 for none.
    pair : Int[Tensor, 'example'], optional
        Hash of the pair that each example belongs to, if the examples are paired.
    side : Int[Tensor, 'example'], optional
        Index of each example within its pair.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    ids: Sequence[str]
    keys: Sequence[bytes]
    order: Int[Tensor, "example"]
    occurrence: Int[Tensor, "example"]
    group_keys: Sequence[bytes]
    label: Int[Tensor, "example"]
    mask: Bool[Tensor, "example pos"] | None = None
    decoder_mask: Bool[Tensor, "example pos2"] | None = None
    special: Bool[Tensor, "example pos"] | None = None
    sink: Bool[Tensor, "example pos"] | None = None
    segment: Int[Tensor, "example pos"] | None = None
    first: Int[Tensor, "example"] | None = None
    grid: tuple[int, int] | None = None
    length: Int[Tensor, "example"] | None = None
    truncated: Int[Tensor, "example"] | None = None
    pair: Int[Tensor, "example"] | None = None
    side: Int[Tensor, "example"] | None = None
    packed: Mapping[str, Int[Tensor, "example"]] = field(default_factory=dict[str, Tensor])
    placeholder: Bool[Tensor, "example pos"] | None = None
    completion: Bool[Tensor, "example pos"] | None = None
    columns: dict[str, Any] = field(default_factory=dict[str, Any])
    token_axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])

    def __len__(self) -> int:
        return len(self.order)

    @property
    def asked(self) -> Bool[Tensor, "example pos"] | None:
        """Mask of the tokens that a language model is asked to predict; None for all tokens."""
        if self.placeholder is None:
            return self.completion
        if self.completion is None:
            return ~self.placeholder
        return self.completion & ~self.placeholder

    @property
    def apart(self) -> Bool[Tensor, "example pos"] | None:
        """Mask of the tokens that a mean leaves out: special ones and sinks."""
        if self.special is None or self.sink is None:
            return self.sink if self.special is None else self.special
        return self.special.bool() | self.sink.to(self.special.device)


class Inputs(OneLine, ABC):
    """A re-iterable source of model inputs in a planned order, listed before the run."""

    @property
    @abstractmethod
    def group_keys(self) -> Sequence[bytes]:
        """The group key of every example in the planned order."""

    @property
    @abstractmethod
    def grouped(self) -> bool:
        """True if a group column was given or examples were cut into chunks."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """The name of each class number; empty without labels."""
        return ()

    @property
    def own_labels(self) -> bool:
        """True if the data's class numbers are known to be the model's class numbers."""
        return False

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The label columns, classes or numbers first; empty without labels."""
        return ()

    @abstractmethod
    def batches(self, start: int, stop: int) -> Iterator[InputBatch]:
        """Yield the model inputs of one unit, with a deterministic cut and order.

        Each batch needs tensors of its own, because several batches are taken before the first is
        read. If all batches share a buffer, all of them give the rows of the last batch.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return the JSON that names the data: fingerprint, examples, order, batch size, chunks."""

    @property
    def pads(self) -> bool:
        """True if batches need padding that the examples do not contain."""
        return False

    @property
    def counts_completions(self) -> bool:
        """True if examples are prompts with completions, and a loss counts the completions only."""
        return False

    @property
    def source_rows(self) -> np.ndarray | None:
        """Index of each example's data item; None if unknown."""
        return None

    def __len__(self) -> int:
        return len(self.group_keys)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({plural(len(self), 'example')})"
