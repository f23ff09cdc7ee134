"""A few model inputs that can be cut, stacked, padded and shuffled for tests."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.tap.model.vary import token_axes

LONGEST = 64
SHORTEST = 2

Side = Literal["left", "right"]


def single(inputs: Inputs, index: int) -> InputBatch | None:
    """Return one example's inputs without padding, or None if it was skipped as broken."""
    batch = next(iter(inputs.batches(index, index + 1)), None)
    return None if batch is None else unpadded(batch)


def token_length(batch: InputBatch) -> int | None:
    """Return the size of the token axis, or None if the inputs are not tokens."""
    if batch.mask is not None:
        return batch.mask.shape[1]
    ids = batch.kwargs.get("input_ids", batch.args[0] if batch.args else None)
    if isinstance(ids, Tensor) and ids.ndim == 2 and not ids.is_floating_point():
        return ids.shape[1]
    return None


def cut(batch: InputBatch, length: int) -> InputBatch:
    """Return the inputs of one example without the tokens after the first ``length``.

    Placeholders of an image stay, whatever comes before them: the model needs all of them.
    """
    whole = token_length(batch)
    if whole is None or whole <= length:
        return batch
    kept = _kept(batch, length)
    return _along(batch, whole, _picked(kept))


def _kept(batch: InputBatch, length: int) -> Tensor:
    """Return the indices of one example's tokens to keep: the first, and image placeholders."""
    if batch.placeholder is None:
        return torch.arange(length)
    held = batch.placeholder[0]
    room = max(SHORTEST, length - int(held.sum()))
    return (held | ((~held).cumsum(0) <= room)).nonzero().flatten()


def unpadded(batch: InputBatch) -> InputBatch:
    """Return one example's inputs without their padding."""
    mask = batch.mask
    if mask is None or bool(mask.all()):
        return batch
    real = torch.nonzero(mask[0]).flatten()
    return _along(batch, mask.shape[1], _picked(real))


Along = Callable[[str, Tensor, int], Tensor]
"""A change of the argument of this name along one axis."""


def _picked(index: Tensor) -> Along:
    return lambda _, x, axis: x.index_select(axis, index.to(x.device))


def _along(batch: InputBatch, length: int, change: Along) -> InputBatch:
    """Return the inputs with a change applied along every axis of tokens."""

    def fit(name: str, x: Any, called: str) -> Any:
        if isinstance(x, Tensor) and not name.startswith("decoder_") and name not in batch.packed:
            for axis in token_axes(name, x, length, batch):
                x = change(called, x, axis)
        return x

    def fit_mask(name: str, x: Tensor | None) -> Tensor | None:
        return None if x is None else change(name, x, 1)

    return replace(
        batch,
        args=tuple(fit(str(i), x, "input_ids") for i, x in enumerate(batch.args)),
        kwargs={name: fit(name, x, name) for name, x in batch.kwargs.items()},
        mask=fit_mask("mask", batch.mask),
        special=fit_mask("special", batch.special),
        sink=fit_mask("sink", batch.sink),
        segment=None,
        placeholder=fit_mask("placeholder", batch.placeholder),
        completion=fit_mask("completion", batch.completion),
    )


@dataclass(frozen=True, eq=False)
class SmallBatches:
    """Inputs of single examples, and batches made from them.

    Parameters
    ----------
    singles : tuple of InputBatch
        Of one example each; of equal size, except after ``shortened`` or without ``even``.
    pad_id : int
        Token that fills padded positions.
    takes_mask, takes_positions : bool
        Whether the model's forward has parameters for them.
    """

    singles: tuple[InputBatch, ...]
    pad_id: int
    takes_mask: bool
    takes_positions: bool

    def __len__(self) -> int:
        return len(self.singles)

    @property
    def length(self) -> int | None:
        """Tokens of the longest example, or None if the inputs are not tokens."""
        lengths = [token_length(s) for s in self.singles]
        return None if None in lengths else max((n for n in lengths if n is not None), default=None)

    def together(self, which: Sequence[int]) -> InputBatch:
        """Return one batch of some examples of equal size, in the order given."""
        return stacked([self.singles[i] for i in which])

    def other_endings(self, start: int) -> InputBatch:
        """Return a batch of all texts, each with another text's tokens from ``start`` on."""
        length = self.length
        assert length is not None

        def fit(name: str, x: Tensor, axis: int) -> Tensor:
            moves = name == "input_ids" and not x.is_floating_point()
            return torch.cat([x[:, :start], x[:, start:].roll(1, 0)], dim=1) if moves else x

        return _along(self.together(range(len(self))), length, fit)

    def shortened(self) -> "SmallBatches | str":
        """Return the texts, all but the first cut in half, or the reason why this is impossible."""
        length = self.length
        if length is None:
            return "inputs are not texts"
        if not self.takes_mask:
            return "the model takes no attention mask"
        if len(self) < 2 or length <= SHORTEST:
            return "needs two texts of different length"
        first, *others = self.singles
        half = max(SHORTEST, length // 2)
        return replace(self, singles=(first, *(cut(s, half) for s in others)))

    def padded(self, side: Side, positions: bool = False) -> InputBatch:
        """Return a batch of texts of different lengths, padded on one side.

        ``positions`` passes the positions that follow from the mask; otherwise none are passed.
        """
        longest = self.length or 0
        batch = stacked([self._filled(s, longest, side) for s in self.singles])
        kwargs = {k: v for k, v in batch.kwargs.items() if k != "position_ids"}
        assert batch.mask is not None
        kwargs["attention_mask"] = batch.mask.long()
        if positions:
            kwargs["position_ids"] = (batch.mask.long().cumsum(1) - 1).clamp(min=0)
        return replace(batch, kwargs=kwargs)

    def _filled(self, one: InputBatch, longest: int, side: Side) -> InputBatch:
        length = token_length(one)
        assert length is not None
        if one.mask is None:
            one = replace(one, mask=torch.ones(1, length, dtype=torch.bool))
        missing = longest - length

        def fill(name: str, x: Tensor, axis: int) -> Tensor:
            value = self.pad_id if name == "input_ids" else 0
            more = x.new_full((*x.shape[:axis], missing, *x.shape[axis + 1 :]), value)
            return torch.cat([more, x] if side == "left" else [x, more], dim=axis)

        return one if missing == 0 else _along(one, length, fill)


def small_batches(
    model: Model,
    inputs: Inputs,
    examples: Sequence[int],
    longest: int | None = LONGEST,
    least: int = 0,
    *,
    even: bool = True,
) -> SmallBatches:
    """Return the examples of equal size, with texts cut to ``longest``.

    Texts are cut to their median length and shorter ones are left out. If fewer than ``least``
    texts would remain, all are cut further, to the length that ``least`` of them have. Without
    ``even``, shorter texts remain, and ``together`` takes texts of one length only.
    """
    every = [single(inputs, i) for i in examples]
    singles = [s if longest is None else cut(s, longest) for s in every if s is not None]
    names = _parameters(model.module)
    singles = _same_targets(_evened(singles, least, even))
    return SmallBatches(
        singles=tuple(singles),
        pad_id=_pad_id(model),
        takes_mask="attention_mask" in names,
        takes_positions="position_ids" in names,
    )


def _evened(singles: list[InputBatch], least: int, even: bool) -> list[InputBatch]:
    """Return examples of equal size: texts cut to one length, shorter ones perhaps removed."""
    lengths = [n for s in singles if (n := token_length(s)) is not None]
    if len(lengths) == len(singles) > 0:
        kept = sorted(n for n in lengths if n >= SHORTEST)
        middle = min(len(kept) // 2, max(0, len(kept) - max(2, least)))
        size = kept[middle] if kept else SHORTEST
        fewest = size if even else SHORTEST
        evened = [cut(s, size) for s in singles if (token_length(s) or 0) >= fewest]
        return [s for s in evened if not even or token_length(s) == size]
    shapes = [_shapes(s) for s in singles]
    common = max(shapes, key=shapes.count, default=())
    return [s for s, shape in zip(singles, shapes, strict=True) if shape == common]


def _same_targets(singles: list[InputBatch]) -> list[InputBatch]:
    """Return the inputs with the decoder's tokens cut to the shortest example."""
    shortest = min(
        (x.shape[1] for s in singles for k, x in s.kwargs.items() if _is_target(k, x)), default=0
    )
    return [
        replace(
            s,
            kwargs={k: x[:, :shortest] if _is_target(k, x) else x for k, x in s.kwargs.items()},
            decoder_mask=None if s.decoder_mask is None else s.decoder_mask[:, :shortest],
        )
        for s in singles
    ]


def _is_target(name: str, x: Any) -> bool:
    return name.startswith("decoder_") and isinstance(x, Tensor) and x.ndim >= 2


def _parameters(module: nn.Module) -> set[str]:
    inner = getattr(module, "_orig_mod", module)
    return set(inspect.signature(inner.forward).parameters)


def _pad_id(model: Model) -> int:
    """Return the padding id, by which models count positions or find the last token."""
    size = getattr(model.config, "vocab_size", None)
    owners = (model.processor, model.config)
    for owner in owners[::-1] if model.task == "classifier" else owners:
        token = getattr(owner, "pad_token_id", None)
        if isinstance(token, int) and token >= 0 and (size is None or token < size):
            return token
    return 0


def _shapes(batch: InputBatch) -> tuple[Any, ...]:
    values = [*batch.args, *batch.kwargs.values()]
    return tuple(tuple(x.shape) for x in values if isinstance(x, Tensor))


def stacked(parts: Sequence[InputBatch]) -> InputBatch:
    """Return one batch of examples whose tensors have equal shapes."""
    first = parts[0]

    def join(values: list[Any]) -> Any:
        if not isinstance(values[0], Tensor) or values[0].ndim == 0:
            return values[0]
        return torch.cat(values)

    return replace(
        first,
        args=tuple(join([p.args[i] for p in parts]) for i in range(len(first.args))),
        kwargs={name: join([p.kwargs[name] for p in parts]) for name in first.kwargs},
        ids=[i for p in parts for i in p.ids],
        keys=[k for p in parts for k in p.keys],
        order=torch.cat([p.order for p in parts]),
        occurrence=torch.cat([p.occurrence for p in parts]),
        group_keys=[k for p in parts for k in p.group_keys],
        label=torch.cat([p.label for p in parts]),
        mask=None if first.mask is None else torch.cat([_mask(p) for p in parts]),
        decoder_mask=None
        if first.decoder_mask is None
        else torch.cat([p.decoder_mask for p in parts if p.decoder_mask is not None]),
        packed={name: torch.cat([p.packed[name] for p in parts]) for name in first.packed},
        placeholder=_joined([p.placeholder for p in parts]),
        completion=_joined([p.completion for p in parts]),
        special=None,
        sink=None,
        segment=None,
        first=None,
        length=None,
        truncated=None,
        pair=None,
        side=None,
        columns={},
    )


def with_tokens(batch: InputBatch, ids: Tensor) -> InputBatch:
    """Return a batch of texts with other tokens in the same positions."""
    if "input_ids" in batch.kwargs:
        return replace(batch, kwargs={**batch.kwargs, "input_ids": ids})
    return replace(batch, args=(ids, *batch.args[1:]))


def _joined(masks: Sequence[Tensor | None]) -> Tensor | None:
    there = [mask for mask in masks if mask is not None]
    return torch.cat(there) if there and len(there) == len(masks) else None


def _mask(batch: InputBatch) -> Tensor:
    assert batch.mask is not None
    return batch.mask
