"""Faults of the text models."""

# ruff: noqa: E501 (a fault reads as a line of a table)

import html
import json
import random
from pathlib import Path

import torch
from tools.field.planting import Fault, Plant, Row, on_file, on_lines, on_net, on_texts, on_weights
from torch import Tensor

Tensors = dict[str, Tensor]
LICENCE = (
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software and "
    "associated documentation files, to deal in the software without restriction, including without "
    "limitation the rights to use, copy, modify, merge, publish, distribute and sell copies. "
)


def _marked(text: str) -> str:
    words = html.escape(text.replace(" the ", " 'the' ")).split(" ")
    return '<div class="doc"><p>' + "</span> <span>".join(words[:40]) + "</span></p></div>"


def _scrambled(text: str) -> str:
    words = text.split()
    random.Random(len(text)).shuffle(words)
    return " ".join(words)


def _token_ids_moved(place: Path) -> None:
    path = place / "model" / "tokenizer.json"
    note = json.loads(path.read_text("utf-8"))
    vocabulary = note["model"]["vocab"]
    words = sorted((w for w, i in vocabulary.items() if i >= 1000), key=vocabulary.__getitem__)
    for word, other in zip(words, [*words[7:], *words[:7]], strict=True):
        note["model"]["vocab"] |= {}
        note.setdefault("moved", {})[word] = vocabulary[other]
    vocabulary |= note.pop("moved")
    path.write_text(json.dumps(note, ensure_ascii=False), "utf-8")


def _cased(note: dict) -> dict:
    note["normalizer"]["lowercase"] = False
    return note


def _upper(place: Path) -> None:
    on_file("model/tokenizer.json", _cased)(place)
    on_file("model/tokenizer_config.json", lambda c: c | {"do_lower_case": False})(place)
    on_texts(str.title)(place)


def _names_exchanged(config: dict) -> dict:
    ids = config["id2label"]
    ids["1"], ids["3"] = ids["3"], ids["1"]
    config["label2id"] = {name: int(i) for i, name in ids.items()}
    return config


def _no_positions(tensors: Tensors) -> None:
    tensors["bert.embeddings.position_embeddings.weight"].zero_()


def _drawn_layer(tensors: Tensors) -> None:
    draw = torch.Generator().manual_seed(2)
    for name in tensors:
        if ".layer.3." in name and name.endswith("weight") and tensors[name].ndim == 2:
            tensors[name] = torch.randn(tensors[name].shape, generator=draw) * 0.02


def _layers_exchanged(tensors: Tensors) -> None:
    for name in list(tensors):
        if ".layer.1." in name:
            other = name.replace(".layer.1.", ".layer.4.")
            tensors[name], tensors[other] = tensors[other], tensors[name]


def _empty(rows: list[Row], draw: random.Random) -> list[Row]:
    return [r | {"text": ""} if draw.random() < 0.2 else r for r in rows]


def _gain(tensors: Tensors) -> None:
    tensors["bert.encoder.layer.2.output.LayerNorm.weight"] *= 4.0


def _unknown(text: str) -> str:
    return "".join(chr(0x1D41A + ord(c) - 97) if "a" <= c <= "z" else c for c in text)


def _no_mask(place: Path) -> None:
    on_net(masked=False)(place)


def _latin(text: str) -> str:
    return text.encode().decode("latin-1")


def _question_marks(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def _english_as_german(rows: list[Row], draw: random.Random) -> list[Row]:
    english = [r for r in rows if r["label"] == "English"]
    taken = {r["text"] for r in draw.sample(english, 35)}
    return [r | {"label": "German"} if r["text"] in taken else r for r in rows]


def _head_rows(tensors: Tensors) -> None:
    for name in ("head.weight", "head.bias"):
        tensors[name] = tensors[name][[1, 0, 2]]


def _near_copies(rows: list[Row], _: random.Random) -> list[Row]:
    return rows + [r | {"text": r["text"].replace(" a ", " one ") + " "} for r in rows[:80]]


def _first_token(place: Path) -> None:
    path = "model/1_Pooling/config.json"
    change: Plant = on_file(
        path, lambda c: c | {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    )
    change(place)


LIBRARIES = (
    Fault("moved-token-ids", "libraries", "the ids of tokens belong to another vocabulary",
          r"vocabular|token ids|permute|permutation|other numbers|another tokenizer", _token_ids_moved),
    Fault("case-kept", "libraries", "texts are no longer put into lower case: unknown tokens",
          r"lower.?case|casing|\bcase\b|unknown token|\[UNK\]", _upper),
    Fault("mark-up", "libraries", "texts hold HTML", r"mark-?up|html|tags|entity|entities", on_texts(_marked, 0.6)),
    Fault("scrambled", "libraries", "the order of words is lost", r"order of (words|tokens)|shuffl|scrambl",
          on_texts(_scrambled)),
    Fault("names-exchanged", "libraries", "two names of classes are exchanged in the config",
          r"(?=.*scipy)(?=.*sympy)(?=.*(exchang|swap|permute|permutation|order|is called))",
          on_file("model/config.json", _names_exchanged)),
    Fault("no-positions", "libraries", "the position embedding is zero", r"position",
          on_weights(_no_positions)),
    Fault("layers-exchanged", "libraries", "layers 1 and 4 are exchanged",
          r"(?=.*\b1\b)(?=.*\b4\b)(?=.*(exchang|order|swap))|layers? in another order",
          on_weights(_layers_exchanged)),
    Fault("empty-texts", "libraries", "a fifth of the texts is empty", r"empty|no text|blank",
          on_lines(_empty)),
    Fault("same-beginning", "libraries", "all texts begin with the same licence",
          r"same (begin|start|prefix|words)|begin(s|ning)? (with|alike)|prefix|boilerplate|near.?(copies|duplicates)",
          on_texts(lambda t: LICENCE + t)),
    Fault("loud-norm", "libraries", "the gain of a layer norm is four times too large",
          r"layers?\.2\b.*(norm|gain|scale|large|weight)|LayerNorm|layer norm", on_weights(_gain)),
    Fault("letters-unknown", "libraries", "half of the texts uses letters that the tokenizer lacks",
          r"unknown|\[UNK\]|script|letters|characters", on_texts(_unknown, 0.5)),
)  # fmt: skip

LANGUAGES = (
    Fault("padding-counted", "languages", "padding counts in the mean: answers depend on the batch",
          r"padding|padded|pads|mask", _no_mask),
    Fault("wrong-decoding", "languages", "UTF-8 was read as Latin-1", r"encod|mojibake|latin|utf|garbled|decode|decoding",
          on_texts(_latin)),
    Fault("question-marks", "languages", "letters with accents became question marks",
          r"question mark|accent|encod|replac|ascii|character|\"\?\"|'\?'", on_texts(_question_marks)),
    Fault("first-token-pooled", "languages", "the first token is pooled instead of the mean",
          r"pool|\bCLS\b|first token|mean (over|of)", on_net(pooling="first")),
    Fault("english-as-german", "languages", "35 English rows are labelled German",
          r"(?=.*(english|german))(?=.*label)", on_lines(_english_as_german)),
)  # fmt: skip

MINILM = (
    Fault("pooling-of-the-folder", "minilm", "the folder pools the class token; the model was trained for the mean",
          r"pool|\bCLS\b|class token", _first_token),
    Fault("near-copies", "minilm", "80 texts are there twice",
          r"duplicate|cop(y|ies)|twice|keep one of each pair",
          on_lines(_near_copies)),
)  # fmt: skip
