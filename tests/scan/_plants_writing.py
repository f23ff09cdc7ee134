"""Faults in how texts are written, with their healthy twins: more plants."""

import random
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import sonde
from findings._writing import GERMAN, docstrings, plurals, spelled, words
from scan._plants import Plant
from scan._zoo import quiet
from sonde.core.inputs import Model
from sonde.report import Report

CODES = ("SND076", "SND077", "SND078", "SND079", "SND080", "SND081", "SND082")


def read(change: Callable[[str, int], str] = lambda t, _: t, lower: bool = True) -> Report:
    """Scan a small encoder of random weights over changed documentation."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 600, "hidden_size": 16, "intermediate_size": 16}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
    config = BertConfig(**sizes)
    model = Model(BertModel(config).eval(), words(lower), config, "encoder", "encoder")
    rows = [{"text": change(text, i)} for i, text in enumerate(docstrings())]
    return sonde.scan(model, rows, settings=quiet(only=CODES), long="truncate")


def _marked(text: str, i: int) -> str:
    return f"<p>{text}</p>" if i % 2 else text


def _german(text: str, i: int) -> str:
    return f"{GERMAN[i % 4]} {GERMAN[(i // 4) % 4]} {i}" if i % 5 == 0 else text


def _greek(text: str, _: int) -> str:
    """Write vowels as Greek letters, which the tokenizer does not know."""
    return text.translate(str.maketrans("aeio", "αειο"))


def _upper(text: str, _: int) -> str:
    return text.upper()


def _headed(text: str, _: int) -> str:
    return f"Permission is granted to any person who obtains a copy of this text. {text[:200]}"


def _shuffled(text: str, i: int) -> str:
    split = text.split()
    return " ".join(random.Random(i).sample(split, len(split)))


def _plain(text: str, _: int) -> str:
    """Return a text in which a tokenizer of small letters has nothing to undo."""
    return " ".join(text.lower().split())


def stepped_tokenizer(step: int, longest: int = 128) -> PreTrainedTokenizerFast:
    """Return a tokenizer of words and their plurals whose ids are shifted by a step."""
    own = plurals()
    ids = {word: i if i < 4 else 4 + (i - 4 + step) % (len(own) - 4) for word, i in own.items()}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=longest
    )


def looked_up(step: int) -> Report:
    """Scan an encoder with a table of similar words, whose tokenizer gives ids with a step."""
    own = plurals()
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": len(own), "hidden_size": 24, "intermediate_size": 16}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
    config = BertConfig(**sizes)
    body = BertModel(config).eval()
    body.embeddings.word_embeddings.weight.data.copy_(spelled(own))
    rows = [{"text": text} for text in docstrings()]
    model = Model(body, stepped_tokenizer(step), config, "encoder", "encoder")
    return sonde.scan(model, rows, settings=quiet(only=("SND082",)), long="truncate")


PLANTS = (
    Plant("SND076", "warning", lambda: read(_greek), read),
    Plant("SND077", "warning", lambda: read(_marked), read),
    Plant("SND078", "note", lambda: read(_german), read),
    Plant("SND079", "warning", lambda: read(_upper, lower=False), lambda: read(_plain)),
    Plant("SND080", "note", lambda: read(_headed), read),
    Plant("SND081", "warning", lambda: read(_shuffled), read),
    Plant("SND082", "warning", lambda: looked_up(3), lambda: looked_up(0)),
)
