"""Spelling of the texts that a model receives, and their tokens."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int

from sonde.data import ItemInputs
from sonde.data.images import PICTURE_COLUMNS
from sonde.data.numbers import are_numbers
from sonde.data.processors import is_tokenizer
from sonde.data.vocabulary import is_byte_level
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import shared_rows
from sonde.findings.evidence.texts.text_measures import (
    SIGNS,
    are_languages,
    language_of,
    n_broken,
    n_marks,
    script_of,
)
from sonde.tap import LiveStream

TEXTS: Final = 2_048
LEAST_TEXTS: Final = 20
_BYTE: Final = re.compile(r"^<0x[0-9A-Fa-f]{2}>$")


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of some texts, with the numbers of unknown tokens and of byte tokens.

    Parameters
    ----------
    ids : tuple of list of int
    unknown, in_bytes : Float[ndarray, "text"]
        Share of its tokens that stand for unknown signs, and that are a part of a sign.
    """

    ids: tuple[list[int], ...]
    unknown: Float[np.ndarray, "text"]
    in_bytes: Float[np.ndarray, "text"]

    @cached_property
    def n(self) -> Int[np.ndarray, "text"]:
        """Number of tokens of each text."""
        return np.array([len(ids) for ids in self.ids], dtype=np.int64)

    def share(self, of: Float[np.ndarray, "text"]) -> float:
        """Return these tokens as a fraction of all tokens."""
        return float((of * self.n).sum() / max(int(self.n.sum()), 1))


@dataclass(frozen=True, eq=False)
class Writing:
    """Distinct texts of the sampled rows.

    Parameters
    ----------
    texts : tuple of str
        At most the first 2,000 signs of each.
    order : Int[ndarray, "text"]
        The example of each text, by planned order.
    tokenizer : object or None
        None if the model reads bytes, or no tokenizer is known.
    """

    texts: tuple[str, ...]
    order: Int[np.ndarray, "text"]
    tokenizer: Any = None
    _read: dict[str, Tokens] = field(default_factory=dict[str, Tokens])

    @cached_property
    def tokens(self) -> Tokens | None:
        """Statistics of the tokenized texts."""
        return None if self.tokenizer is None else tokens_of(self.tokenizer, self.texts)

    @cached_property
    def marks(self) -> Int[np.ndarray, "text"]:
        """Number of HTML tags and entities in each text."""
        return np.array([n_marks(t) for t in self.texts], dtype=np.int64)

    @cached_property
    def broken(self) -> Int[np.ndarray, "text"]:
        """Number of lost or wrongly decoded characters in each text."""
        return np.array([n_broken(t) for t in self.texts], dtype=np.int64)

    @cached_property
    def languages(self) -> tuple[str | None, ...]:
        """Language of each text; None if it is not identified."""
        return tuple(language_of(t) for t in self.texts)

    @cached_property
    def scripts(self) -> tuple[str | None, ...]:
        """Script of most letters of each text; None for a text without letters."""
        return tuple(script_of(t) for t in self.texts)

    @property
    def measures(self) -> Mapping[str, Callable[[str], float]]:
        """Statistics of one tokenized text, by name."""
        if self.tokenizer is None:
            return {}
        return {
            "the fraction of unknown tokens in {}": lambda text: float(self._of(text).unknown[0]),
            "the fraction of byte tokens in {}": lambda t: float(self._of(t).in_bytes[0]),
        }

    def _of(self, text: str) -> Tokens:
        if text not in self._read:
            self._read[text] = tokens_of(self.tokenizer, [text[:SIGNS]])
        return self._read[text]

    def nuisances(self, classes: Sequence[str]) -> dict[str, Float[np.ndarray, "text"]]:
        """Return nuisances of texts that should not predict a label, language perhaps excluded."""
        columns = {"marks": self.marks.astype(np.float64)}
        if self.tokens is not None:
            columns["unknown"] = self.tokens.unknown
        languages = [name for name in self.languages if name is not None]
        if len(languages) >= 0.9 * len(self.texts) and not are_languages(classes):
            main = Counter(languages).most_common(1)[0][0]
            other = [0.5 if name is None else float(name != main) for name in self.languages]
            columns["language"] = np.array(other)
        return columns

    def examples(self, texts: Sequence[int] | np.ndarray) -> tuple[int, ...]:
        """Return the examples of some texts."""
        return tuple(int(self.order[i]) for i in texts)


def text_writing(stream: LiveStream, evidence: Evidence) -> Writing | str:
    """Return the texts of the sampled rows, or the reason for none."""
    data, shared = evidence.data, shared_rows(evidence)
    if not isinstance(stream.inputs, ItemInputs) or data.key_columns is None or not data.inputs:
        return "the inputs are not texts"
    if shared.order is None or not len(shared.order):
        return "every row has NaN or infinity at some site"
    seen: dict[bytes, int] = {}
    for example in sorted(shared.order.tolist()):
        seen.setdefault(data.keys[example], example)
    chosen = sorted(seen.values())[:TEXTS]
    first = data.key_columns(chosen[:LEAST_TEXTS])
    if not _texts(first, data.inputs) or _are_other_data(evidence, first):
        return "the inputs are not texts"
    texts = _texts(data.key_columns(chosen), data.inputs)
    if len(texts) < LEAST_TEXTS:
        return f"needs {LEAST_TEXTS} different texts"
    processor = stream.model.processor
    tokenizer = getattr(processor, "tokenizer", processor)
    if not is_tokenizer(tokenizer) or is_byte_level(tokenizer):
        tokenizer = None
    return Writing(tuple(texts), np.array(chosen), tokenizer)


def _are_other_data(evidence: Evidence, columns: Mapping[str, Sequence[Any]]) -> bool:
    """Return whether strings are numbers of a table or names of image files."""
    values = [columns[name] for name in evidence.data.inputs if name in columns]
    return bool(set(PICTURE_COLUMNS) & set(evidence.columns)) or all(map(are_numbers, values))


def _texts(columns: Mapping[str, Sequence[Any]], inputs: Sequence[str]) -> list[str]:
    """Return the joined text columns of the model's input; empty if a column is not text."""
    values = [columns[name] for name in inputs if name in columns]
    if not values or not all(isinstance(v, str) for column in values for v in column):
        return []
    return ["\n".join(row)[:SIGNS] for row in zip(*values, strict=True)]


def read_texts(tokenizer: Any, texts: Sequence[str]) -> tuple[list[int], ...]:
    """Return the token ids of texts, without special tokens."""
    given = tokenizer(list(texts), add_special_tokens=False, verbose=False, padding=False)
    return tuple(list(ids) for ids in given["input_ids"])


def tokens_of(tokenizer: Any, texts: Sequence[str]) -> Tokens:
    """Return the tokens of texts, without special tokens."""
    ids = read_texts(tokenizer, texts)
    unknown = {tokenizer.unk_token_id} - {None, tokenizer.eos_token_id, tokenizer.bos_token_id}
    parts = {i for i in {i for some in ids for i in some} if _is_part(tokenizer, i)} - unknown
    shares = [
        np.array([sum(i in kind for i in some) / max(len(some), 1) for some in ids])
        for kind in (unknown, parts)
    ]
    return Tokens(ids, shares[0], shares[1])


def _is_part(tokenizer: Any, token: int) -> bool:
    """Return whether a token is one or several bytes of a character."""
    word = tokenizer.convert_ids_to_tokens(token)
    return isinstance(word, str) and (
        _BYTE.match(word) is not None or "\ufffd" in tokenizer.decode([token])
    )


def nuisances_of_rows(
    evidence: Evidence, examples: Sequence[int], classes: Sequence[str]
) -> dict[str, Float[np.ndarray, "row"]]:
    """Return the text nuisances of some examples; empty if some texts were not read."""
    writing, keys = evidence.get(text_writing), evidence.data.keys
    if not isinstance(writing, Writing):
        return {}
    at = {keys[example]: i for i, example in enumerate(writing.order.tolist())}
    rows = [at.get(keys[example], -1) for example in examples]
    if min(rows, default=-1) < 0:
        return {}
    return {name: values[rows] for name, values in writing.nuisances(classes).items()}
