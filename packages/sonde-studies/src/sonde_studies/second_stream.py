"""Latent steps that attend to the embeddings of pictures, against steps on the state alone.

Six pictures of digits say to which of six cells an arrow leads from each cell; the question names
a cell, and the answer is the cell two arrows on.
"""

import copy
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding

from sonde.layers import LatentLoop
from sonde_studies._gpt2 import gpt2
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.arms import trained_once
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

CELLS, HEADS, DIM, FIT, HELD, IMAGES = 6, 2, 24, 40_000, 1_000, 1_000
WORDS = 2 * CELLS
"""A word for each question, and one for each answer; pictures are the tokens after them."""
BASE, LEARN, BATCH, TINY, RATE = 1000, 800, 64, 3, 4e-3
DRAWS, KNOWN = 4, 0.95
"""Initial weights of the decoder that follows one arrow, and its accuracy on rows that train: where
it is lower, the next weights are tried, and the best decoder is kept. All arms start from it."""
ARMS: dict[str, dict[str, Any]] = {
    "attend": {"n_steps": 1, "mix": "attend"},
    "others": {"n_steps": 1, "mix": "attend"},
    "replace": {"n_steps": 1},
    "none": {"n_steps": 0},
}
"""Parameters of the loop; ``others`` attends to the pictures of another row."""


@final
class SecondStreamStudy(Study):
    """A decoder that follows an arrow learns to follow two, with a latent step or without."""

    name = "second-stream"
    title = "does attention to the pictures in a latent step find more answers?"
    paper = "pham2025mcout"
    fidelity = "a decoder of one block, trained on answers; a map embeds pictures"
    data = "digits 0 to 5 as pictures of arrows; new pictures in the test"
    seconds = 60.0
    claims = (
        Claim("attend", "A latent step that attends to the embeddings of the pictures answers more "
              "often than one that attends to those of another question.",
              "accuracy on two arrows, own pictures less others'", arms=("attend", "others")),
        Claim("replace", "With a quarter more parameters it answers more often than a step on the "
              "state alone.",
              "accuracy on two arrows, attention to the pictures less state alone",
              arms=("attend", "replace")),
        Claim("step", "A step on the state alone answers more often than none.",
              "accuracy on two arrows, state alone less no step", arms=("replace", "none")),
    )  # fmt: skip
    null = Claim("one", "Where the answer is one arrow on, which the decoder has learned before, "
                 "attention to the pictures adds nothing.",
                 "accuracy on one arrow, own pictures less others'",
                 arms=("attend, one arrow", "others, one arrow"))  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each way on two arrows, and both ways of attention on one arrow."""
        two, one = dict[str, float](), dict[str, float]()
        for arm in ARMS:
            tick(arm)
            two[arm] = _accuracy(arm, 2, seed, tiny)
        for arm in ("attend", "others"):
            tick(f"{arm}, one arrow")
            one[arm] = _accuracy(arm, 1, seed, tiny)
        return {
            "attend": two["attend"] - two["others"],
            "replace": two["attend"] - two["replace"],
            "step": two["replace"] - two["none"],
            "one": one["attend"] - one["others"],
            **{f"accuracy, two arrows | {arm}": v for arm, v in two.items()},
            **{f"accuracy, one arrow | {arm}": v for arm, v in one.items()},
        }


@final
class _PictureWords(nn.Module):
    """Embeddings of words, and of pictures as tokens after them."""

    def __init__(self, pictures: Tensor, dim: int) -> None:
        super().__init__()
        self.pictures = nn.Buffer(pictures)
        self.words, self.map = nn.Embedding(WORDS, dim), nn.Linear(pictures.shape[1], dim)
        nn.init.normal_(self.words.weight, std=0.1)

    @property
    def weight(self) -> Tensor:
        return torch.cat([self.words.weight, self.map(self.pictures)])

    def forward(self, ids: Tensor) -> Tensor:
        return embedding(ids, self.weight)


def _decoder(pictures: Tensor) -> Any:
    net = gpt2(
        WORDS, CELLS + 3, DIM, layers=1, heads=HEADS,
        initializer_range=0.1, tie_word_embeddings=False,
    )  # fmt: skip
    net.set_input_embeddings(_PictureWords(pictures, DIM))
    return net


def pictured_arrows(length: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures, questions about where their arrows lead, and the answers.

    Parameters
    ----------
    length : int
        Number of arrows to follow.
    seed : int

    Returns
    -------
    pictures : (picture, pixel).
    tokens : a picture for each cell, then the question; test rows show pictures of their own.
    cell : the answers.
    """
    x, label = shuffled_digits(seed)
    draw = torch.Generator().manual_seed(seed)
    n = FIT + HELD
    to = torch.rand(n, CELLS, generator=draw).argsort(1)
    shown = torch.empty_like(to)
    for begin, end, images in (
        (0, FIT, torch.arange(IMAGES)), (FIT, n, torch.arange(IMAGES, len(x)))
    ):  # fmt: skip
        for cell in range(CELLS):
            fit = images[label[images] == cell]
            part = to[begin:end] == cell
            pick = torch.randint(len(fit), (int(part.sum()),), generator=draw)
            shown[begin:end][part] = fit[pick]
    asked = torch.randint(CELLS, (n, 1), generator=draw)
    at = asked
    for _ in range(length):
        at = to.gather(1, at)
    return x, torch.cat([WORDS + shown, asked], 1), at[:, 0]


@trained_once
def _follows_one(seed: int, tiny: bool) -> Any:
    """Return a decoder that follows one arrow."""
    pictures, ids, answer = pictured_arrows(1, seed)
    found = list[tuple[float, Any]]()
    while not found or (max(found, key=_first)[0] < KNOWN and len(found) < DRAWS and not tiny):
        net = drawn(lambda: _decoder(pictures), seed + 1_000 * len(found))
        loop = LatentLoop(net, n_steps=0)
        _learn(loop, ids, ids, answer, seed, TINY if tiny else BASE)
        found.append((_right(loop, ids[:HELD], ids[:HELD], answer[:HELD]), net))
    return max(found, key=_first)[1]


def _first(pair: tuple[float, Any]) -> float:
    return pair[0]


def _logits(net: LatentLoop, ids: Tensor, seen: Tensor) -> Tensor:
    """Return the logits of answers; ``seen`` are the tokens whose pictures a step attends to."""
    memory = None
    if net.mix == "attend":
        places: Tensor = net.model.transformer.wpe.weight
        memory = net.model.get_input_embeddings()(seen[:, :CELLS]) + places[:CELLS]
    return net(ids, memory=memory)[:, CELLS:]


def _learn(
    net: LatentLoop, ids: Tensor, seen: Tensor, answer: Tensor, seed: int, steps: int
) -> None:
    minimise(
        lambda rows: cross_entropy(_logits(net, ids[rows], seen[rows]), answer[rows]),
        net.parameters(), FIT, steps=steps, seed=seed, rate=RATE, batch=BATCH, falls=True,
    )  # fmt: skip


def _accuracy(arm: str, length: int, seed: int, tiny: bool) -> float:
    """Return the accuracy on new pictures."""
    ids, answer = pictured_arrows(length, seed)[1:]
    seen = torch.cat([part.roll(1, 0) for part in ids.split(FIT)]) if arm == "others" else ids
    net = drawn(lambda: LatentLoop(copy.deepcopy(_follows_one(seed, tiny)), **ARMS[arm]), seed)
    _learn(net, ids, seen, answer, seed, TINY if tiny else LEARN)
    return _right(net, ids[FIT:], seen[FIT:], answer[FIT:])


@torch.no_grad()
def _right(net: LatentLoop, ids: Tensor, seen: Tensor, answer: Tensor) -> float:
    return float((_logits(net, ids, seen).argmax(1) == answer).double().mean())
