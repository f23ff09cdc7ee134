"""Texts, text pairs, chats and token lists as padded batches.

Padding that is built here is on the right, so the tokenizer's own side does not matter. Token ids
that come with their own ``attention_mask`` keep their padding where it stands. Texts longer than
the context are cut into chunks without overlap, each with the special tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.hashing import bytes_key, tensor_key
from sonde.core.state import canonical_json
from sonde.data.encoder import (
    Collated,
    EmptyText,
    Encoder,
    LongText,
    Piece,
    Prepared,
    called,
    takes,
)
from sonde.data.sources import Row
from sonde.data.tensors import column_tensor, stacked_items
from sonde.data.vocabulary import Vocabulary

TOKEN_TYPES = "token_type_ids"
Arguments = Mapping[str, Tensor]


Long = Literal["chunk", "truncate", "error"]
DECODER_IDS, DECODER_MASK = "decoder_input_ids", "decoder_attention_mask"
MAX_TEXT_BYTES = 256 * 2**20
MOST_EXPANSION = 12


@dataclass(frozen=True)
class Decoder:
    """Inputs of the decoder of an encoder-decoder model.

    Parameters
    ----------
    start : int
        Its start token.
    column : str or None
        Column with the target text; None = the start token alone.
    given : bool
        Whether rows bring the decoder's token ids, start token and all.
    """

    start: int = 0
    column: str | None = None
    given: bool = False


@final
@dataclass(frozen=True, eq=False)
class TextEncoder(Encoder):
    """One text, pair of texts, chat, or list of token ids per row.

    Parameters
    ----------
    tokenizer : tokenizer or None
        None if rows hold token ids.
    inputs : tuple of str
        The column, or two for pairs.
    kind : {"text", "pair", "messages", "tokens"}
    names : frozenset of str
        Parameters of the model's ``forward``.
    max_length : int or None
        Most tokens of one example; None = no limit.
    long : {"chunk", "truncate", "error"}
        What happens to a longer text.
    others, unread : tuple of str
        Columns beside token ids that ``forward`` takes, and those that it does not.
    masked : bool
        Whether token ids come with a mask of their own.
    prompt : str or None
        Column with the beginning of the text, or of the chat, that is its prompt.
    """

    tokenizer: Any
    inputs: tuple[str, ...]
    kind: str
    names: frozenset[str]
    vocabulary: Vocabulary
    max_length: int | None = None
    long: Long = "chunk"
    decoder: Decoder | None = None
    others: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    masked: bool = False
    prompt: str | None = None
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def even(self) -> bool:
        """True if ``forward`` accepts no mask and would read padding as text."""
        return not takes("attention_mask", self.names)

    @property
    def pads(self) -> bool:
        """True if the encoder pads texts; token ids with their own mask are already padded."""
        return not (self.even or self.masked)

    @property
    def counts_completions(self) -> bool:
        """True if rows are prompts with completions."""
        return self.prompt is not None

    def key(self, row: Row) -> bytes:
        """Hash the UTF-8 of the text, the chat as JSON, or the token ids with their arguments."""
        return bytes_key(self._content(row) + content(row, self._others(row)))

    def size(self, row: Row) -> int:
        """Return the bytes of the text, or of the token ids with their arguments."""
        beside = self._others(row).values()
        return len(self._content(row)) + sum(x.numel() * x.element_size() for x in beside)

    def _content(self, row: Row) -> bytes:
        if self.kind == "tokens":
            ids, mask = self._given(row), b""
            if row.get("attention_mask") is not None and not bool((real := self._real(row)).all()):
                mask = b"|mask|" + real.numpy().tobytes()
            if self.decoder is not None and self.decoder.given:
                target = torch.tensor(self._given_target(row), dtype=torch.int64)
                mask += b"|decoder|" + target.numpy().tobytes()
            return b"ids|" + np.array(ids, dtype=np.int64).tobytes() + mask
        if self.kind == "messages":
            value = _value(row, self.inputs[0])
            if not isinstance(value, list):
                raise InputError(
                    f"expected a list of messages in column {self.inputs[0]!r}, "
                    f"got {type(value).__name__}"
                )
            return canonical_json(value).encode()
        texts = [_text_of_row(row, name) for name in self.inputs]
        if self.decoder is not None and self.decoder.column is not None:
            _text_of_row(row, self.decoder.column)
        return "\0".join(texts).encode("utf-8", "surrogatepass")

    def pieces(self, rows: Sequence[Row]) -> list[list[Piece]]:
        """Return the examples of each row; texts surely short enough are not tokenised here."""
        out: list[list[Piece] | None] = [None if self._may_be_long(r) else [Piece()] for r in rows]
        long = [i for i, piece in enumerate(out) if piece is None]
        for i, ids in zip(long, self._tokens([rows[i] for i in long]), strict=True):
            out[i] = self._cut(len(ids))
        return [piece for piece in out if piece is not None]

    def _may_be_long(self, row: Row) -> bool:
        if self.kind == "tokens" or self.long == "truncate":
            return True
        size = self.size(row)
        if size == 0 and not self.vocabulary.before and not self.vocabulary.after:
            return True
        if self.max_length is None:
            return False
        ascii_only = self.kind == "text" and row[self.inputs[0]].isascii()
        return (size + 2) * (1 if ascii_only else MOST_EXPANSION) + self._around > self.max_length

    @property
    def _around(self) -> int:
        if self.kind in ("messages", "tokens"):
            return 0
        return len(self.vocabulary.before) + len(self.vocabulary.after)

    def _cut(self, length: int) -> list[Piece]:
        if self.kind == "pair":
            return [Piece(0, *self._pair_length(length))]
        around = self._around
        whole = length + around
        if whole == 0:
            raise EmptyText("an empty text gives no token")
        if self.max_length is None or whole <= self.max_length:
            return [Piece(0, whole)]
        self._refuse_long(whole)
        room = self.max_length - around
        if self.long == "truncate":
            return [Piece(0, self.max_length, length - room)]
        starts = range(0, length, room)
        return [
            Piece(k * self.max_length, min(room, length - s) + around) for k, s in enumerate(starts)
        ]

    def _pair_length(self, length: int) -> tuple[int, int]:
        if self.max_length is None or length <= self.max_length:
            return length, 0
        if self.long == "chunk":
            raise InputError(
                f"a pair of texts has {length} tokens, but the model reads {self.max_length}, "
                "and pairs cannot be cut into chunks; pass long='truncate' (--long truncate)"
            )
        self._refuse_long(length)
        return self.max_length, length - self.max_length

    def _refuse_long(self, length: int) -> None:
        if self.long == "error":
            raise LongText(
                f"the text has {length} tokens, but the model reads {self.max_length}; pass "
                "long='chunk' or 'truncate' (--long)"
            )

    def prepare(self, rows: Sequence[Row], wanted: Sequence[tuple[int, int]]) -> list[Prepared]:
        """Tokenise each row once and cut out the pieces."""
        targets = self._targets(rows)
        if self.kind == "pair":
            return [self._pair(rows[r], targets[r]) for r, _ in wanted]
        tokens = self._tokens(rows)
        others = [self._others(row) for row in rows]
        out: list[Prepared] = []
        for row, number in wanted:
            ids = self._piece(tokens[row], number)
            start = number * (self.max_length or 0)
            extra = cut(others[row], len(tokens[row]), start, start + len(ids))
            real = self._real(rows[row]) if self.kind == "tokens" else None
            if self.prompt is not None:
                real = self._completion(rows[row], tokens[row], number)
            out.append(Prepared((ids, extra, targets[row], real), len(ids)))
        return out

    def _completion(self, row: Row, ids: list[int], number: int) -> Bool[Tensor, "_pos"]:
        """Return the tokens of a piece that belong to the completion of a prompt.

        A token that begins in the prompt and ends in the completion is one of them.
        """
        prompt, n = row.get(self.prompt or ""), 0
        if prompt is not None:
            text = self._chat(prompt, opens=True) if self.kind == "messages" else prompt
            both = zip(self._encoded([text])[0], ids, strict=False)
            n = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
        return torch.tensor(self._piece([i >= n for i in range(len(ids))], number, (False, True)))

    def _piece(
        self, values: list[Any], number: int, around: tuple[Any, Any] | None = None
    ) -> list[Any]:
        """Return one piece of a row's token ids, or of values of its tokens.

        The special tokens before and after a piece have the values ``around``.
        """
        before, after = self.vocabulary.before, self.vocabulary.after
        if self.kind in ("messages", "tokens"):
            before, after = (), ()
        if self.max_length is not None:
            room = self.max_length - len(before) - len(after)
            values = values[number * room : (number + 1) * room]
        if around is not None:
            before, after = [around[0]] * len(before), [around[1]] * len(after)
        return [*before, *values, *after]

    def _others(self, row: Row) -> dict[str, Tensor]:
        return arguments(row, self.others, self._kept(row)) if self.others else {}

    def _pair(self, row: Row, target: list[int] | None) -> Prepared:
        encoded = self._encode_pair(row, cut=self.long == "truncate")
        extra = {k: torch.tensor(v) for k, v in encoded.items() if k == TOKEN_TYPES}
        return Prepared((encoded["input_ids"], extra, target, None), len(encoded["input_ids"]))

    def _encode_pair(self, row: Row, cut: bool) -> dict[str, list[int]]:
        first, second = (_text_of_row(row, name) for name in self.inputs)
        options = {"truncation": "longest_first", "max_length": self.max_length} if cut else {}
        return dict(self.tokenizer(first, second, verbose=False, **options))

    def _tokens(self, rows: Sequence[Row]) -> list[list[int]]:
        if not rows:
            return []
        if self.kind == "tokens":
            return [self._given(row) for row in rows]
        if self.kind == "pair":
            return [self._encode_pair(row, cut=False)["input_ids"] for row in rows]
        texts = [
            self._chat(row[self.inputs[0]])
            if self.kind == "messages"
            else _text_of_row(row, self.inputs[0])
            for row in rows
        ]
        return self._encoded(texts)

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of texts, without special tokens around them."""
        if self.vocabulary.bytes_only:
            return [list(text.encode("utf-8", "surrogatepass")) for text in texts]
        encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False, padding=False)
        return list(encoded["input_ids"])

    def _chat(self, messages: Any, *, opens: bool = False) -> str:
        """Return a chat as text; if it opens an answer, with the start of the next message."""
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opens
            )
        except Exception as error:
            raise InputError(f"the chat template rejects these messages: {error}") from error

    def _given(self, row: Row) -> list[int]:
        ids = _integers(_value(row, self.inputs[0]), self.inputs[0])
        self._require_known(ids)
        if row.get("attention_mask") is None:
            return ids
        return [i for i, k in zip(ids, self._kept(row).tolist(), strict=True) if k]

    def _kept(self, row: Row) -> Bool[Tensor, "pos"]:
        """Return the mask of an item's token ids to read.

        All ids are read, and padding stays as it came. Padding is left out if the model takes no
        mask, or if the item is longer than its context.
        """
        real = self._masked(row)
        too_long = self.max_length is not None and len(real) > self.max_length
        return real if self.even or too_long else torch.ones_like(real)

    def _real(self, row: Row) -> Bool[Tensor, "pos"]:
        """Return the mask of real tokens among those read."""
        return self._masked(row)[self._kept(row)]

    def _masked(self, row: Row) -> Bool[Tensor, "pos"]:
        """Return the token ids marked real by the item's own mask."""
        size = len(_integers(_value(row, self.inputs[0]), self.inputs[0]))
        if row.get("attention_mask") is None:
            return torch.ones(size, dtype=torch.bool)
        kept = _integers(row["attention_mask"], "attention_mask")
        if len(kept) != size:
            raise InputError(
                f"expected {size} numbers in column 'attention_mask', one for each of "
                f"{self.inputs[0]}, got {len(kept)}"
            )
        if kept and not any(kept):
            raise InputError(
                "the attention_mask of a text selects no token (1 marks tokens, 0 marks padding: "
                "is the mask inverted?)"
            )
        return torch.tensor(kept, dtype=torch.int64) != 0

    def _targets(self, rows: Sequence[Row]) -> list[list[int] | None]:
        if self.decoder is not None and self.decoder.given:
            return [self._given_target(row) for row in rows]
        if self.decoder is None or self.decoder.column is None:
            return [None] * len(rows)
        texts = [_text_of_row(row, self.decoder.column) for row in rows]
        ids_of = self.tokenizer(text_target=texts, verbose=False, padding=False)["input_ids"]
        return [list(ids[: self.max_length]) for ids in ids_of]

    def _given_target(self, row: Row) -> list[int]:
        """Return a row's own real decoder tokens, including the start token."""
        ids = _integers(_value(row, DECODER_IDS), DECODER_IDS)
        self._require_known(ids)
        if row.get(DECODER_MASK) is not None:
            kept = _integers(row[DECODER_MASK], DECODER_MASK)
            if len(kept) != len(ids):
                raise InputError(
                    f"expected {len(ids)} numbers in column {DECODER_MASK!r}, one for each of "
                    f"{DECODER_IDS}, got {len(kept)}"
                )
            ids = [i for i, k in zip(ids, kept, strict=True) if k]
        if not ids:
            raise InputError(f"expected at least one token in column {DECODER_IDS!r}, got none")
        return ids

    def _require_known(self, ids: list[int]) -> None:
        size = self.vocabulary.size
        if ids and (min(ids) < 0 or (size is not None and max(ids) >= size)):
            raise InputError(f"expected token ids in [0, {size}), got {min(ids)} to {max(ids)}")

    def collate(self, items: Sequence[Prepared]) -> Collated:
        """Pad on the right and pass only arguments that ``forward`` accepts."""
        ids, mask = _padded([item.value[0] for item in items], self.vocabulary.pad)
        completion = None if self.prompt is None else torch.zeros_like(mask)
        chosen = mask if completion is None else completion
        for i, item in enumerate(items):
            if item.value[3] is not None:
                chosen[i, : item.length] = item.value[3][: item.length]
        size = self.vocabulary.size
        if size is not None and int(ids.max()) >= size:
            raise InputError(
                f"text: the tokenizer gives the token id {int(ids.max())}, but the model has "
                f"{size} tokens. Pass the tokenizer that belongs to the model."
            )
        args, kwargs = called("input_ids", ids, self.names)
        if not self.even:
            kwargs["attention_mask"] = mask.long()
        for name in items[0].value[1]:
            if takes(name, self.names):
                values = [item.value[1][name] for item in items]
                kwargs[name] = batched(values, [i.length for i in items], name)
        decoder_mask = None
        if self.decoder is not None:
            starts = [
                i.value[2]
                if self.decoder.given
                else [self.decoder.start, *(i.value[2] or [0])[:-1]]
                for i in items
            ]
            kwargs["decoder_input_ids"], decoder_mask = _padded(starts, self.vocabulary.pad)
            if "decoder_attention_mask" in self.names:
                kwargs["decoder_attention_mask"] = decoder_mask.long()
        return Collated(
            args,
            kwargs,
            mask=mask,
            decoder_mask=decoder_mask,
            special=self._special(ids, mask),
            completion=completion,
        )

    def _special(
        self, ids: Int[Tensor, "_row _pos"], mask: Bool[Tensor, "_row _pos"]
    ) -> Bool[Tensor, "_row _pos"] | None:
        if self.vocabulary.special is None:
            return None
        declared = torch.tensor(sorted(self.vocabulary.special), dtype=torch.int64)
        return torch.isin(ids, declared) & mask

    def identity(self) -> dict[str, Any]:
        """Return columns, truncation and tokenizer as identity."""
        target = None if self.decoder is None else self.decoder.column
        return {
            "kind": self.kind,
            "inputs": list(self.inputs),
            "target": target,
            "max_length": self.max_length,
            "long": self.long,
            **({"decoder": DECODER_IDS} if self.decoder and self.decoder.given else {}),
            **({"others": list(self.others)} if self.others else {}),
            **({"prompt": self.prompt} if self.prompt is not None else {}),
            **self.origin,
        }

    def notes(self) -> list[str]:
        """Return notes on the decoder's inputs, unread columns, and a missing padding token."""
        texts: list[str] = []
        if self.decoder is not None and self.decoder.column is None and not self.decoder.given:
            texts.append(
                "The decoder reads only its start token: no target column was given "
                "(--target-column)."
            )
        if self.prompt is not None:
            texts.append(
                "Rows are prompts with completions: losses count the tokens of the completions "
                "only."
            )
        if self.unread:
            texts.append(
                f"Not read, because forward has no argument of that name: {', '.join(self.unread)}."
            )
        if self.even:
            texts.append(
                "The model's forward takes no attention_mask, so a batch holds texts of one "
                "length and nothing is padded."
            )
        return texts


def _value(row: Row, name: str) -> Any:
    if row.get(name) is None:
        raise InputError(f"no value in column {name!r}")
    return row[name]


def _text_of_row(row: Row, name: str) -> str:
    text = _value(row, name)
    if not isinstance(text, str):
        raise InputError(f"expected a text in column {name!r}, got {type(text).__name__}")
    if len(text) > MAX_TEXT_BYTES:
        raise InputError(f"the text in column {name!r} is longer than {MAX_TEXT_BYTES >> 20} MiB")
    return text


def _integers(values: Any, name: str) -> list[int]:
    plain = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(plain, list | tuple) or not set(map(type, plain)) <= {int}:
        raise InputError(f"expected a list of whole numbers in column {name!r}")
    return list(plain)


def _padded(
    rows: Sequence[Sequence[int]], pad: int
) -> tuple[Int[Tensor, "_row _pos"], Bool[Tensor, "_row _pos"]]:
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[i, : len(row)] = True
    return ids, mask


# A value whose first axis is as long as the token ids belongs to the tokens: it is masked, cut and
# padded with them. Any other belongs to the item and is stacked.
def arguments(row: Row, names: Sequence[str], kept: Bool[Tensor, "pos"]) -> dict[str, Tensor]:
    """Return an item's other arguments, without the values of removed tokens.

    Token types that an item does not give are 0.

    Raises
    ------
    InputError
        If a value is missing or not numeric, or tokens and token types differ in number.
    """
    tensors: dict[str, Tensor] = {}
    for name in names:
        if name == TOKEN_TYPES and row.get(name) is None:
            tensors[name] = torch.zeros(int(kept.sum()), dtype=torch.int64)
            continue
        x = column_tensor(row.get(name), name)
        if name == TOKEN_TYPES and x.shape != kept.shape:
            raise InputError(
                f"expected {len(kept)} numbers in column {name!r}, one for each of input_ids, got "
                f"shape {tuple(x.shape)}"
            )
        tensors[name] = x[kept] if _of_tokens(x, len(kept)) else x
    return tensors


def content(row: Row, found: Arguments) -> bytes:
    """Return bytes that identify an item's other arguments, for its id."""
    return b"".join(n.encode() + tensor_key(x) for n, x in found.items() if row.get(n) is not None)


def cut(found: Arguments, length: int, start: int, stop: int) -> dict[str, Tensor]:
    """Return the arguments of the tokens ``[start, stop)`` of ``length``."""
    return {n: x[start:stop] if _of_tokens(x, length) else x for n, x in found.items()}


def batched(
    values: Sequence[Shaped[Tensor, "..."]],
    lengths: Sequence[int],
    name: str,
) -> Shaped[Tensor, "..."]:
    """Return an argument of several items: stacked, token values padded with 0 on the right.

    Raises
    ------
    InputError
        If the items' shapes do not fit.
    """
    if all(_of_tokens(x, n) for x, n in zip(values, lengths, strict=True)):
        width = max(lengths)
        values = [torch.cat([x, x.new_zeros(width - len(x), *x.shape[1:])]) for x in values]
    return stacked_items(values, name)


def _of_tokens(x: Shaped[Tensor, "..."], length: int) -> bool:
    return x.ndim > 0 and len(x) == length
