"""Test whether another run's keys and values transfer its context.

The shipped model of bytes reads a piece of a file, and its attentions also see the keys and values
of a run over the piece before it, over a piece of another file, or of nothing.
"""

from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import cross_entropy

import sonde
from sonde.edit import joined_attention
from sonde_studies._written import code
from sonde_studies.arms import note, part
from sonde_studies.study import Claim, Figures, Study, Tick

LENGTH, TEXTS, BATCH, WEAK = 120, 128, 32, 0.2
FIGURE = "nats a byte"


@final
class JoinedAttentionStudy(Study):
    """Pieces of 120 bytes of files outside the shipped model's training data."""

    name = "joined-attention"
    title = "do joined keys and values bring what another run read?"
    paper = "wu2024infiniteid"
    fidelity = (
        "turned to texts: a file's beginning in place of a face, and the loss of what follows in "
        "place of pictures; one softmax over both runs as published; that places are "
        "counted on after the source was chosen after a first look"
    )
    data = "sonde:stdlib and the files of Python's library that it was not trained on"
    place = "byte-model"
    claims = (
        Claim("brought", "With the keys of the piece before, a piece is likelier than alone.",
              f"loss alone less loss joined, which takes a second pass, {FIGURE}",
              arms=("joined", "alone")),
        Claim("its own", "It is likelier than with the keys of another file.",
              f"loss with another file less loss with its own, {FIGURE}",
              arms=("joined", "another file")),
        Claim("places", "If both runs count their places from 0, joining harms instead.",
              f"loss joined at places from 0 less loss alone, in one pass for two, {FIGURE}",
              arms=("joined, places from 0", "alone")),
        Claim("strength", "A fifth of the weight brings less.",
              f"loss at a fifth less loss at full weight, {FIGURE}",
              arms=("a fifth", "joined")),
        Claim("late", "Joined in the last three of seven layers alone, most of it comes.",
              "share of the fall of the loss that is kept, less 0.5"),
        Claim("early", "Joined in the first three alone, most of it comes.",
              "share of the fall of the loss that is kept, less 0.5"),
    )  # fmt: skip
    null = Claim("no weight", "Joined at no weight, keys bring nothing.",
                 f"loss alone less loss joined at weight 0, {FIGURE}")  # fmt: skip

    @torch.no_grad()
    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Read the pieces in every way."""
        net: Any = sonde.load("sonde:stdlib", device="cpu").module
        before, after, file = _pairs(8 if tiny else TEXTS, np.random.default_rng(seed))
        other = _of_another_file(file)
        layers = [f"model.layers.{i}.self_attn" for i in range(len(net.model.layers))]
        tick("read")
        ways: dict[str, dict[str, Any]] = {
            "alone": {},
            "as context": {"context": before},
            "joined": {"source": before},
            "joined, places from 0": {"source": before, "places": 0},
            "another file": {"source": before[other]},
            "a fifth": {"source": before, "strength": WEAK},
            "last three layers": {"source": before, "layers": layers[-3:]},
            "first three layers": {"source": before, "layers": layers[:3]},
        }
        loss = dict[str, float]()
        for name, way in ways.items():
            with part(name):
                loss[name] = _loss(net, after, **way)
        fall = loss["alone"] - loss["joined"]
        return {
            "brought": fall,
            "its own": loss["another file"] - loss["joined"],
            "places": loss["joined, places from 0"] - loss["alone"],
            "strength": loss["a fifth"] - loss["joined"],
            "late": (loss["alone"] - loss["last three layers"]) / fall - 0.5,
            "early": (loss["alone"] - loss["first three layers"]) / fall - 0.5,
            "no weight": fall_at(net, before, after),
            **{f"loss, {name}": value for name, value in loss.items()},
        }


@torch.no_grad()
def fall_at(net: Any, before: Tensor, after: Tensor, strength: float = 0.0) -> float:
    """Return what the keys before bring at a weight, both runs at places from 0."""
    joined = _loss(net, after, source=before, places=0, strength=strength)
    return _loss(net, after) - joined


def _loss(
    net: Any,
    texts: Int[Tensor, "text byte"],
    *,
    source: Tensor | None = None,
    context: Tensor | None = None,
    places: int = LENGTH,
    **how: Any,
) -> float:
    """Return the mean loss on texts: alone, after a context, or joined to another run."""
    total = 0.0
    for rows in torch.arange(len(texts)).split(BATCH):
        ids = texts[rows]
        at = torch.arange(places, places + ids.shape[1]).expand(len(ids), -1)
        note(passes=1 if source is None else 2)
        if context is not None:
            logits = net(torch.cat([context[rows], ids], 1)).logits[:, context.shape[1] :]
        elif source is None:
            logits = net(ids).logits
        else:
            with joined_attention(net, {"input_ids": source[rows]}, **how):
                logits = net(ids, position_ids=at).logits
        each = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
        total += float(each)
    return total / texts[:, 1:].numel()


def _pairs(n: int, draw: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return pieces of files, the next piece of each, and the file's number."""
    files = code()
    starts = [(f, s) for f, text in enumerate(files)
              for s in range(0, len(text) - 2 * LENGTH, 2 * LENGTH)]  # fmt: skip
    chosen = [starts[i] for i in draw.permutation(len(starts))[:n]]
    both = torch.tensor([list(files[f][s : s + 2 * LENGTH]) for f, s in chosen])
    return both[:, :LENGTH], both[:, LENGTH:], torch.tensor([f for f, _ in chosen])


def _of_another_file(file: Int[Tensor, "text"]) -> Int[Tensor, "text"]:
    """Return, for each text, the next text of another file."""
    n = len(file)
    found: list[int] = []
    for i in range(n):
        after = [(i + k) % n for k in range(1, n) if file[(i + k) % n] != file[i]]
        found.append(after[0])
    return torch.tensor(found)
