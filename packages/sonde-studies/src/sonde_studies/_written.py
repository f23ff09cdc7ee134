"""Human texts, and texts that the shipped language model wrote after human beginnings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde import Model
from sonde.data import StandardLibrary
from sonde.tap import cache_argument, cache_of

HUMAN, MACHINE = 0, 1
BATCH = 64
TextT = TypeVar("TextT", str, bytes)


@dataclass(frozen=True)
class Texts:
    """Token ids of texts of one length, and the writer of each continuation."""

    ids: list[list[int]]
    label: list[int]

    def __add__(self, other: "Texts") -> "Texts":
        return Texts(self.ids + other.ids, self.label + other.label)

    def mixed(self, draw: np.random.Generator) -> "Texts":
        """Return the texts in another order."""
        order = draw.permutation(len(self.ids)).tolist()
        return Texts([self.ids[i] for i in order], [self.label[i] for i in order])

    def of(self, label: int) -> "Texts":
        """Return the texts of one writer."""
        chosen = [ids for ids, mine in zip(self.ids, self.label, strict=True) if mine == label]
        return Texts(chosen, [label] * len(chosen))


def code() -> list[bytes]:
    """Return standard-library files outside the training data of the shipped model."""
    return [row["text"].encode() for row in StandardLibrary("test").rows()]


def prose() -> list[bytes]:
    """Return the data-set descriptions of scikit-learn."""
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "descr"
    return [file.read_bytes() for file in sorted(folder.glob("*.rst"))]


def text_pieces(
    files: Sequence[TextT], n: int, length: int, draw: np.random.Generator
) -> list[TextT]:
    """Return ``n`` pieces of ``length`` characters or bytes without overlap, in random order."""
    starts = [(f, s) for f, text in enumerate(files) for s in range(0, len(text) - length, length)]
    chosen = draw.permutation(len(starts))[:n]
    return [files[f][s : s + length] for f, s in (starts[i] for i in chosen)]


def pieces(files: list[bytes], n: int, length: int, draw: np.random.Generator) -> list[list[int]]:
    """Return the bytes of ``text_pieces``."""
    return [list(piece) for piece in text_pieces(files, n, length, draw)]


def written(
    model: Model,
    files: list[bytes],
    n: int,
    prompt: int,
    length: int,
    draw: np.random.Generator,
) -> Texts:
    """Return ``n`` human pieces, and ``n`` others completed by the model."""
    found = pieces(files, 2 * n, length, draw)
    human, begun = found[: len(found) // 2], found[len(found) // 2 :]
    machine = continued(model, [ids[:prompt] for ids in begun], length - prompt, draw)
    both = Texts(human, [HUMAN] * len(human)) + Texts(machine, [MACHINE] * len(machine))
    return both.mixed(draw)


@torch.no_grad()
def continued(
    model: Model, prompts: list[list[int]], more: int, draw: np.random.Generator
) -> list[list[int]]:
    """Return prompts of one length with equally long continuations, sampled at temperature 1."""
    source = torch.Generator().manual_seed(int(draw.integers(2**62)))
    found: list[list[int]] = []
    for first in range(0, len(prompts), BATCH):
        ids = torch.tensor(prompts[first : first + BATCH])
        past, new = None, ids
        for _ in range(more):
            out = model.module(new, **{cache_argument(model.module): past}, use_cache=True)
            past = cache_of(out)
            new = torch.multinomial(out.logits[:, -1].double().softmax(1), 1, generator=source)
            ids = torch.cat([ids, new], dim=1)
        found += ids.tolist()
    return found


def generated(
    model: Any, prompts: Int[Tensor, "text pos"], new: int, **how: Any
) -> Int[Tensor, "text2 pos2"]:
    """Return prompts with ``new`` more tokens, greedy if no option says otherwise.

    No token ends a text. Sampling draws from the global generator.

    Parameters
    ----------
    model : nn.Module
        A causal language model of ``transformers``.
    prompts : Int[Tensor, "text pos"]
        All of one length.
    new : int
    **how
        Options of ``generate``.
    """
    plain = {"do_sample": False, "max_new_tokens": new, "pad_token_id": 0, "eos_token_id": None}
    return model.generate(prompts, attention_mask=torch.ones_like(prompts), **(plain | how))


@torch.no_grad()
def likelihood(model: Any, ids: Int[Tensor, "text pos"], given: int) -> Float[Tensor, "text"]:
    """Return the mean log-probability of the tokens after the first ones, in nats."""
    logs = model(ids).logits[:, given - 1 : -1].log_softmax(2)
    return logs.gather(2, ids[:, given:, None])[..., 0].mean(1)
