"""Texts of documentation, tokenizers trained on them, and what a rule sees of both."""

import inspect
import logging
import random
import re
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import scipy.stats
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from findings._evidence import evidence_of
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.writing import Writing, text_writing

MODULES = (np, scipy.stats, torch.nn, logging, shutil, threading, subprocess)
GERMAN = (
    "Gestern war das Wetter in Hamburg warm und viele Leute saßen am Fluss.",
    "Der Hund lief schnell über die Straße und bellte laut den Nachbarn an.",
    "Wir haben gestern lange über den neuen Vertrag gesprochen, ohne Ergebnis.",
    "Er brachte uns die Rechnung am Freitag und dankte sehr im Voraus.",
)
CHINESE = "今天天气很好我们去公园散步然后吃午饭因为明天要下雨所以今天应该多走路看看花草树木和小动物"


@cache
def docstrings() -> tuple[str, ...]:
    """Return the documentation of some classes and functions, at most 600 signs each."""
    found: dict[str, None] = {}
    for module in MODULES:
        for name in sorted(vars(module)):
            thing = vars(module)[name]
            text = inspect.getdoc(thing) if callable(thing) else None
            if text and len(text) > 60:
                found.setdefault(text[:600])
    return tuple(found)[::7]


@cache
def words(lower: bool) -> PreTrainedTokenizerFast:
    """Return a tokenizer of word pieces, with capitals or without."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lower)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    made.train_from_iterator(docstrings()[::2], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=128
    )


@cache
def pieces() -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes that were joined to pieces."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<end>"], show_progress=False,
                                  initial_alphabet=alphabet)  # fmt: skip
    made.train_from_iterator(docstrings()[::2], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<end>", eos_token="<end>", model_max_length=128
    )


def written(texts: Sequence[str], tokenizer: Any = None, label: Any = None) -> Evidence:
    """Return the evidence of texts, with labels or without."""
    n = len(texts)
    x = np.random.default_rng(0).normal(size=(n, 3))
    known = {} if label is None else {"label": torch.as_tensor(label)}
    facts = {"keys": [t.encode() for t in texts]}
    found = evidence_of(torch.from_numpy(x), facts=facts, **known)
    return found.having({text_writing: Writing(tuple(texts), np.arange(n), tokenizer)})


def some(share: float, seed: int = 0) -> np.ndarray:
    """Return rows of the documentation, drawn at random."""
    return np.random.default_rng(seed).random(len(docstrings())) < share


def chinese(rows: np.ndarray) -> list[str]:
    """Return the documentation with Chinese texts in some rows."""
    draw = np.random.default_rng(1)
    signs = ["".join(draw.choice(list(CHINESE), 60)) for _ in rows]
    return [s if row else t for s, t, row in zip(signs, docstrings(), rows, strict=True)]


@cache
def plurals() -> dict[str, int]:
    """Return a vocabulary of the documentation's words and their plurals, in no order."""
    counted = Counter(w for t in docstrings() for w in re.findall(r"[a-z]{4,}", t.lower()))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    both = sorted({v for w in counted for v in (w, f"{w}s")})
    random.Random(7).shuffle(both)
    return {word: i for i, word in enumerate(dict.fromkeys([*special, *both]))}


def spelled(vocabulary: dict[str, int], dim: int = 24) -> torch.Tensor:
    """Return a table of embeddings in which words of equal beginnings are near each other."""
    draw, stems = torch.Generator().manual_seed(5), dict[str, torch.Tensor]()
    rows = []
    for word in vocabulary:
        stem = stems.setdefault(word.rstrip("s"), torch.randn(dim, generator=draw))
        rows.append(stem + 0.4 * torch.randn(dim, generator=draw))
    return torch.stack(rows)
