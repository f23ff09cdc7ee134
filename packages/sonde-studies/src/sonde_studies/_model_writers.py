"""Texts by small language models that learned from the same files to the same held-out loss."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from sonde.data import StandardLibrary
from sonde_studies._writer_nets import ByteNet, Mixing
from sonde_studies._written import code, pieces
from sonde_studies.worlds.learning import drawn

LOSS, MOST, EVERY = 2.1, 400, 5
"""Held-out loss at which training stops, in nats a byte; most steps, and steps between looks."""
BATCH, LENGTH, RATE, WARM, MEMORY = 8, 128, 3e-3, 20, 0.95
GIVEN, NEW, HELD = 32, 224, 24


@dataclass(frozen=True)
class Sources:
    """Files to learn from, and pieces of other files: beginnings of texts, and held-out ones.

    Parameters
    ----------
    files : list of bytes
    begun : Int[Tensor, "text given"]
    held : Int[Tensor, "piece pos"]
    """

    files: list[bytes]
    begun: Int[Tensor, "text given"]
    held: Int[Tensor, "piece pos"]

    @classmethod
    def of(cls, n: int, draw: np.random.Generator) -> Self:
        """Return the standard library's files for training, and ``n`` beginnings of the others."""
        files = [row["text"].encode() for row in StandardLibrary("train").rows()]
        found = torch.tensor(pieces(code(), n + HELD, LENGTH, draw))
        return cls(files, found[:n, :GIVEN], found[n:])


def trained(mixing: Mixing, sources: Sources, seed: int, most: int = MOST) -> tuple[ByteNet, float]:
    """Return a model as it reached the held-out loss ``LOSS``, and its loss in nats a byte.

    The weights are the moving average over steps.

    Parameters
    ----------
    mixing : str
    sources : Sources
    seed : int
        Draws the first weights, and the order of the files' pieces.
    most : int, default=400
        Steps after which training stops in any case.
    """
    net = drawn(lambda: ByteNet(mixing), seed)
    mean, loss = deepcopy(net), float("inf")
    shown = torch.tensor(
        pieces(sources.files, most * BATCH, LENGTH, np.random.default_rng(seed))
    ).split(BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.01)
    for step, ids in enumerate(shown, start=1):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(step / WARM, 1.0)
        with torch.enable_grad():
            optimiser.zero_grad()
            _loss(net, ids).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
        with torch.no_grad():
            for own, new in zip(mean.parameters(), net.parameters(), strict=True):
                own.lerp_(new, max(1 - MEMORY, 1 / step))
            if step % EVERY == 0 or step == len(shown):
                loss = float(_loss(mean, sources.held))
        if loss <= LOSS:
            break
    return mean, loss


def _loss(net: ByteNet, ids: Tensor) -> Tensor:
    return cross_entropy(net(ids)[0][:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def texts_of(
    net: ByteNet, author: str, begun: Int[Tensor, "text given"], new: int, seed: int
) -> list[dict[str, Any]]:
    """Return what a model writes after beginnings, sampled at temperature 1.

    Returns
    -------
    list of dict
        ``text`` of ``new`` bytes, ``author``, and the number of the beginning as ``file``.
    """
    source = torch.Generator().manual_seed(seed)
    logits, past = net(begun)
    found = list[Tensor]()
    for _ in range(new):
        found.append(torch.multinomial(logits[:, -1].double().softmax(1), 1, generator=source))
        logits, past = net(found[-1], past)
    return [
        {"text": bytes(ids).decode(errors="replace"), "author": author, "file": str(i)}
        for i, ids in enumerate(torch.cat(found, 1).tolist())
    ]
