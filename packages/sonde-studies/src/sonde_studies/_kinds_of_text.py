"""Tables of characters, prose and code in pieces of separate files, and a byte model's loss."""

import ast
import encodings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from sonde import Model
from sonde_studies._written import prose, text_pieces


@dataclass(frozen=True)
class Kind:
    """Texts of one kind: to learn, to set a gate, to test; the last two from other files."""

    learned: list[str]
    gate: list[str]
    judged: list[str]


def kinds_of_text(
    counts: tuple[int, int, int], length: int, draw: np.random.Generator
) -> dict[str, Kind]:
    """Return texts of each kind, with separate files for learning, for gates and for tests.

    Parameters
    ----------
    counts : tuple of int
        Texts to learn, for the gate, and to test.
    length : int
        Of a text, in characters.
    draw : Generator
        Deals the files, and draws the pieces.

    Returns
    -------
    dict of str to Kind
        ``tables``: Python's tables of characters; ``prose``: scikit-learn's descriptions of data;
        ``code``: modules of Python's library.
    """
    files = {
        "tables": _read(Path(encodings.__file__).parent, "cp*.py"),
        "prose": prose(),
        "code": _read(Path(ast.__file__).parent, "*.py"),
    }
    found: dict[str, Kind] = {}
    for name, raw in files.items():
        texts = [raw[i].decode("utf-8", errors="replace") for i in draw.permutation(len(raw))]
        parts = (texts[k::3] for k in range(3))
        found[name] = Kind(*(text_pieces(part, n, length, draw)
                             for part, n in zip(parts, counts, strict=True)))  # fmt: skip
    return found


def _read(folder: Path, pattern: str) -> list[bytes]:
    return [file.read_bytes() for file in sorted(folder.glob(pattern))]


@torch.no_grad()
def next_byte_loss(model: Model, texts: Sequence[str]) -> float:
    """Return the mean next-byte loss of a byte model over all bytes of texts, in nats."""
    tokens = [torch.tensor(list(text.encode())) for text in texts]
    ids = pad_sequence(tokens, batch_first=True)
    real = pad_sequence([torch.ones_like(t) for t in tokens], batch_first=True)
    logits: Tensor = model.module(input_ids=ids, attention_mask=real).logits
    wanted = torch.where(real[:, 1:] > 0, ids[:, 1:], -100)
    return float(cross_entropy(logits[:, :-1].flatten(0, 1), wanted.flatten()))
