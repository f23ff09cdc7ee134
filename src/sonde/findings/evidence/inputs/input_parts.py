"""Small parts of inputs: squares of an image, columns of a table, tokens of a text."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from sonde.core.inputs import InputBatch
from sonde.tap.streams.small_batches import token_length

GRID, SIDE, STRIDE = 16, 4, 2
SMALLEST: Final = 6  # pixels of a picture's side
MOST_TOKENS, LEAST_TEXTS = 400, 8
REACH, ALWAYS = 8, 0.9
"""Tokens on either side that may belong to a phrase, and how often a token of a phrase occurs."""

Kind = Literal["place", "column", "token"]
Rows = Int[np.ndarray, "_row"]
Blocks = Float[np.ndarray, "part row number"]
Swap = Callable[[int, Rows, Rows, np.random.Generator], list[InputBatch]]


@final
@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of inputs, and functions to exchange a part.

    Parameters
    ----------
    kind : {"place", "column", "token"}
    blocks : Float[np.ndarray, "part row number"]
        What each part holds in every row; for a token, whether the row has it.
    words : callable
        ``words(part)`` names a part.
    swap : callable
        ``swap(part, rows, donors, draw)`` returns the rows with the part of the donors. In texts,
        tokens of the donors replace the token and the phrase in which it always stands.
    control : callable
        Exchanges as many other tokens instead of the part. For pictures and tables this is
        ``swap`` itself, with donors of the same class.
    n_numbers : int
        Numbers in one input; for texts, tokens in the longest text.
    """

    kind: Kind
    blocks: Blocks
    words: Callable[[int], str]
    swap: Swap
    control: Swap
    n_numbers: int


def parts_of(singles: Sequence[InputBatch], processor: object, names: Sequence[str]) -> Parts | str:
    """Return the parts of images, texts or rows of a table, or the reason for none.

    Parameters
    ----------
    singles : sequence of InputBatch
        Inputs of one example each.
    processor : object
        The tokenizer of texts.
    names : sequence of str
        Names of the columns that the model is given.
    """
    given = [[v for v in (*b.args, *b.kwargs.values()) if isinstance(v, Tensor)] for b in singles]
    if not given:
        return "no row could be read"
    if all(token_length(b) for b in singles) and singles[0].placeholder is None:
        return _tokens(singles, processor)
    x = [values[0] for values in given if len(values) == 1]
    if len(x) < len(singles) or len({v.shape for v in x}) > 1 or x[0].ndim not in (2, 4):
        return "the inputs are neither images of one size, nor texts, nor rows of a table"
    whole = torch.cat(x)
    if whole.ndim == 2:
        return _columns(singles, whole, names)
    if min(whole.shape[-2:]) < SMALLEST:
        return f"the images have fewer than {SMALLEST} pixels on a side"
    return _places(singles, whole)


def _columns(singles: Sequence[InputBatch], x: Tensor, names: Sequence[str]) -> Parts:
    all_names = names if len(names) == x.shape[1] else [f"{i + 1}" for i in range(x.shape[1])]
    masks = torch.eye(x.shape[1], dtype=torch.bool)
    blocks = x.detach().cpu().double().T[:, :, None].numpy()
    swap = _pasting(singles, x, masks)
    return Parts(
        "column", blocks, [f"column {n}" for n in all_names].__getitem__, swap, swap, x.shape[1]
    )


def _places(singles: Sequence[InputBatch], x: Tensor) -> Parts:
    """Return all squares with a quarter of the image's side, at steps of an eighth."""
    height, width = x.shape[-2:]
    rough = x.detach().cpu().double()
    lines, wide = min(GRID, height), min(GRID, width)
    if (lines, wide) != (height, width):
        rough = adaptive_avg_pool2d(rough, (lines, wide))
    blocks, masks, words = [], [], []
    for top, down in _steps(lines):
        for left, right in _steps(wide):
            blocks.append(rough[:, :, top:down, left:right].flatten(1))
            y0, y1 = top * height // lines, -(-down * height // lines)
            x0, x1 = left * width // wide, -(-right * width // wide)
            mask = torch.zeros(height, width, dtype=torch.bool)
            mask[y0:y1, x0:x1] = True
            masks.append(mask.expand(x.shape[1:]))
            words.append(f"rows {y0} to {y1 - 1}, columns {x0} to {x1 - 1} of the image")
    swap = _pasting(singles, x, torch.stack(masks))
    return Parts("place", torch.stack(blocks).numpy(), words.__getitem__, swap, swap, x[0].numel())


def _steps(size: int) -> list[tuple[int, int]]:
    side, stride = max(2, size * SIDE // GRID), max(1, size * STRIDE // GRID)
    starts = sorted({*range(0, size - side + 1, stride), size - side})
    return [(start, start + side) for start in starts]


def _pasting(singles: Sequence[InputBatch], x: Tensor, masks: Tensor) -> Swap:
    def swap(part: int, rows: Rows, donors: Rows, _: np.random.Generator) -> list[InputBatch]:
        mask = masks[part].to(x.device)
        changed = torch.where(mask, x[torch.from_numpy(donors)], x[torch.from_numpy(rows)])
        return [_given(singles[r], changed[i : i + 1]) for i, r in enumerate(rows)]

    return swap


def _given(batch: InputBatch, x: Tensor) -> InputBatch:
    """Return the inputs of an example with ``x`` in place of its tokens or its only tensor."""
    if "input_ids" in batch.kwargs:
        return replace(batch, kwargs=batch.kwargs | {"input_ids": x})
    if batch.args:
        return replace(batch, args=(x, *batch.args[1:]))
    name = next(k for k, v in batch.kwargs.items() if isinstance(v, Tensor))
    return replace(batch, kwargs=batch.kwargs | {name: x})


def _tokens(singles: Sequence[InputBatch], processor: object) -> Parts | str:
    """Return the tokens that many texts contain and many others do not."""
    ids = [x for b in singles if (x := _ids(b)) is not None]
    if len(ids) < len(singles):
        return "the texts have no token ids"
    special: set[int] = set(getattr(processor, "all_special_ids", None) or ())
    texts = _Texts(singles, [x[0].cpu() for x in ids], special)
    holds = [set(x.tolist()) - special for x in texts.ids]
    counts = Counter(token for held in holds for token in held)
    rare = {t: min(c, len(holds) - c) for t, c in counts.items()}
    usual = sorted((t for t in rare if rare[t] >= LEAST_TEXTS), key=lambda t: (-rare[t], t))
    if not usual:
        return "no token occurs in some texts only"
    usual = usual[:MOST_TOKENS]
    blocks = np.array([[[float(t in held)] for held in holds] for t in usual])
    swap, control = partial(texts.swapped, usual, True), partial(texts.swapped, usual, False)
    words = partial(texts.words, usual, getattr(processor, "decode", None))
    return Parts("token", blocks, words, swap, control, max(map(len, texts.ids)))


@dataclass(frozen=True, eq=False)
class _Texts:
    singles: Sequence[InputBatch]
    ids: Sequence[Int[Tensor, "_pos"]]
    special: set[int]
    phrases: dict[int, dict[int, int]] = field(default_factory=dict[int, dict[int, int]])

    def words(self, tokens: Sequence[int], decode: Any, part: int) -> str:
        """Describe a token and its constant phrase."""
        token = tokens[part]
        phrase = [t for _, t in sorted(self.phrase(token).items())]
        if decode is None:
            return f"token {str(token)!r}"
        inside = f" in {decode(phrase)!r}" if len(phrase) > 1 else ""
        return f"token {decode([token])!r}{inside}"

    def phrase(self, token: int) -> dict[int, int]:
        """Return the tokens that nearly always surround a token, by their offset from it.

        They are exchanged together: a model that reads a phrase does not miss one word of it.
        """
        if token not in self.phrases:
            lists = [x.tolist() for x in self.ids]
            places = [(x, i) for x in lists for i, t in enumerate(x) if t == token]
            self.phrases[token] = {0: token}
            for step in (-1, 1):
                for away in range(step, step * (REACH + 1), step):
                    about = [x[i + away] for x, i in places if 0 <= i + away < len(x)]
                    (usual, n), *_ = Counter(about).most_common(1) or [(-1, 0)]
                    if n < ALWAYS * len(places) or usual in self.special:
                        break
                    self.phrases[token][away] = usual
        return self.phrases[token]

    def swapped(
        self,
        tokens: Sequence[int],
        itself: bool,
        part: int,
        rows: Rows,
        donors: Rows,
        draw: np.random.Generator,
    ) -> list[InputBatch]:
        """Return texts with a token and its phrase, or as many other tokens, replaced."""
        phrase = self.phrase(tokens[part])
        avoid = self.special | set(phrase.values())
        batches = []
        for row, donor in zip(rows, donors, strict=True):
            text = self.ids[row].clone()
            mask = self._held(text, phrase)
            if not itself:
                free = [i for i, t in enumerate(text.tolist()) if t not in avoid]
                chosen = draw.permutation(free)[: int(mask.sum())].astype(int)
                mask = torch.zeros_like(mask)
                mask[torch.from_numpy(chosen)] = True
            pool = [t for t in self.ids[donor].tolist() if t not in avoid]
            if pool:
                text[mask] = torch.from_numpy(draw.choice(pool, int(mask.sum()))).to(text)
            batches.append(_given(self.singles[row], text[None]))
        return batches

    def _held(self, text: Tensor, phrase: dict[int, int]) -> Tensor:
        """Return the positions of a token and its phrase in a text."""
        held = torch.zeros(len(text), dtype=torch.bool)
        for place in (text == phrase[0]).nonzero()[:, 0].tolist():
            for away, token in phrase.items():
                if 0 <= place + away < len(text) and text[place + away] == token:
                    held[place + away] = True
        return held


def _ids(batch: InputBatch) -> Int[Tensor, "1 pos"] | None:
    ids = batch.kwargs.get("input_ids", batch.args[0] if batch.args else None)
    is_text = isinstance(ids, Tensor) and ids.ndim == 2 and not ids.is_floating_point()
    return ids if is_text else None
