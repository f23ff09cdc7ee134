"""Prediction of several next tokens: by maps, by an extra branch, or from the start.

Texts of drawn words in random order: inside a word later letters follow, behind it they do not.
"""

import copy
from contextlib import nullcontext
from typing import final

import torch
from torch import Tensor, nn

from sonde.train import NextTokens, Scope
from sonde_studies._gpt2 import next_token_loss
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

LETTERS, WORDS, LENGTHS, LONG, TEXTS, FIT = 12, 16, (3, 4, 5, 6), 24, 1_500, 1_200
DIM, STEPS, TINY, AHEAD = 32, 250, 3, 3


@final
class NextTokensStudy(Study):
    """A decoder of two blocks for the next letter, with three ways to predict later letters."""

    name = "next-tokens"
    title = "should a net learn to say several tokens ahead?"
    paper = "gloeckle2024multitoken"
    fidelity = (
        "two blocks and a map for each distance in place of a large model and a block for each"
    )
    data = "simulated: texts of 24 letters made of 16 drawn words, 1,200 to train on, 300 to judge"
    claims = (
        Claim("branch", "A second upper block that is trained for later letters says them better "
              "than maps on the finished states.",
              "nats of the letters two to four ahead, maps less branch, which has 3.8 times the "
              "parameters",
              arms=("branch", "maps")),
        Claim("joint", "Learned from the start they are said better still.",
              "nats of the letters two to four ahead, branch less joint, which trains 1.9 times "
              "the parameters",
              arms=("joint", "branch")),
        Claim("next", "The next letter is then said no worse, to two hundredths of a nat.",
              "nats of the next letter, alone less joint (a fifth more parameters), and 0.02",
              arms=("joint", "alone")),
        Claim("draft", "More than half of the letters drafted by the branch are what the net then "
              "says itself.", "share of letters two ahead, less 0.5"),
    )  # fmt: skip
    null = Claim("lots", "In texts of letters by lot the next one is not told.",
                 f"share of next letters that are told, joint, less 1/{LETTERS}")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the nets, and predict later letters in each way."""
        token, steps = _texts(seed), TINY if tiny else STEPS
        arms = {"alone": False, "joint": True}
        nets, heads, found = dict[str, _Net](), dict[str, NextTokens](), dict[str, float]()
        for arm, ahead in arms.items():
            tick(arm)
            nets[arm] = net = drawn(_Net, seed)
            heads[arm] = head = NextTokens(DIM, AHEAD, head=net.head)
            _learn(net, head, token, seed, steps, next_too=True, ahead=ahead)
        for arm in ("maps", "branch"):
            tick(arm)
            nets[arm] = net = copy.deepcopy(nets["alone"])
            heads[arm] = head = NextTokens(DIM, AHEAD, head=net.head)
            net.requires_grad_(False)
            last = Scope("pattern", patterns=("blocks.1.*",)).on(net)
            with last if arm == "branch" else nullcontext():
                _learn(net, head, token, seed, steps, next_too=False, ahead=True)
        held, later = token[FIT:], ("joint", "maps", "branch")
        with torch.no_grad():
            for arm, net in nets.items():
                states = net.eval().states(held)
                if arm in arms:
                    found[f"next | {arm}"] = float(next_token_loss(net.head(states), held))
                if arm in later:
                    found[f"ahead | {arm}"] = float(heads[arm](states, held))
            drafted = heads["branch"].ahead(nets["branch"].states(held))[:, :-2, 0].argmax(-1)
            said = _after_own(nets["alone"], held)
        tick("letters by lot")
        draw = torch.Generator().manual_seed(seed)
        letters = torch.randint(LETTERS, token.shape, generator=draw)
        return {
            "branch": found["ahead | maps"] - found["ahead | branch"],
            "joint": found["ahead | branch"] - found["ahead | joint"],
            "next": found["next | alone"] - found["next | joint"] + 0.02,
            "draft": float((drafted == said).double().mean()) - 0.5,
            "lots": by_lot(letters, seed, steps),
            **found,
        }


def by_lot(token: Tensor, seed: int, steps: int) -> float:
    """Return the share of next letters that are told in texts by lot, less that of chance."""
    net = drawn(_Net, seed)
    head = NextTokens(DIM, AHEAD, head=net.head)
    _learn(net, head, token, seed, steps, next_too=True, ahead=True)
    held = token[FIT:]
    with torch.no_grad():
        said = net.eval().head(net.states(held))[:, :-1].argmax(-1)
    return float((said == held[:, 1:]).double().mean()) - 1 / LETTERS


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(LETTERS, DIM), nn.Embedding(LONG, DIM)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(DIM, 4, 2 * DIM, 0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, LETTERS)

    def states(self, token: Tensor) -> Tensor:
        """Return the input states of the head."""
        n = token.shape[1]
        h = self.letters(token) + self.places(torch.arange(n))
        later = torch.ones(n, n, dtype=torch.bool).triu(1)
        for block in self.blocks:
            h = block(h, src_mask=later)
        return self.norm(h)


def _texts(seed: int) -> Tensor:
    """Return texts (text, letter) of words in random order, starting within a word."""
    draw = torch.Generator().manual_seed(seed)
    words = [
        torch.randint(LETTERS, (LENGTHS[i % len(LENGTHS)],), generator=draw) for i in range(WORDS)
    ]
    texts = list[Tensor]()
    for _ in range(TEXTS):
        order = torch.randint(WORDS, (LONG,), generator=draw).tolist()
        start = int(torch.randint(3, (1,), generator=draw))
        texts.append(torch.cat([words[i] for i in order])[start : start + LONG])
    return torch.stack(texts)


def _learn(
    net: _Net, head: NextTokens, token: Tensor, seed: int, steps: int, next_too: bool, ahead: bool
) -> None:
    """Train the free parameters by the loss on the next letter, on later ones, or on both."""
    free = [p for p in net.parameters() if p.requires_grad]
    parts = [*free, *head.parameters()] if ahead else free

    def loss(rows: Tensor) -> Tensor:
        states = net.states(token[rows])
        value = next_token_loss(net.head(states), token[rows]) if next_too else states.new_zeros(())
        return value + head(states, token[rows]) if ahead else value

    minimise(loss, parts, FIT, steps=steps, seed=seed, batch=32)


def _after_own(net: _Net, token: Tensor) -> Tensor:
    """Return a net's predictions after its own next letter, at all positions but the last two."""
    own = net.head(net.states(token)).argmax(-1)
    said = list[Tensor]()
    for t in range(token.shape[1] - 2):
        longer = torch.cat([token[:, : t + 1], own[:, t : t + 1]], 1)
        said.append(net.head(net.states(longer))[:, -1].argmax(-1))
    return torch.stack(said, 1)
