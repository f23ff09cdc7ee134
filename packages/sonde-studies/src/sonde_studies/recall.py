"""Recall of a linear attention: reading order, reading twice, or a free prefix.

Sequences hold two sets of symbols; the answer is the symbol that both hold.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.layers import LinearAttention
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

SYMBOLS, SHORT, LONG, FIT, HELD, STEPS, TINY, DIM = 24, 3, 12, 20_000, 1_000, 400, 3, 32
MASKED, WEIGHT = 0.15, 0.25
WAYS = ("causal", "twice", "prefix", "masked", "separate", "wide")
HIDDEN, WIDE = 64, 96
"""Units of the maps between attentions; with WIDE the readers with shared and with separate maps of
the prefix have almost equally many parameters (22,840 and 22,904)."""


@final
class RecallStudy(Study):
    """Four ways of reading and two losses, each with the short or the long set first."""

    name = "recall"
    title = "does reading a context without causal order free recall from its order?"
    paper = "arora2024jrt"
    fidelity = "two layers of eight features a head; one task of the paper's, of 15 tokens"
    data = "simulated: sets of 3 and 12 of 24 symbols with one in common"
    claims = (
        Claim("prefix", "A prefix that is read without order answers better than causal reading.",
              "accuracy, mean of both orders, prefix less causal",
              arms=("prefix, short first", "causal, short first")),
        Claim("order", "It depends less on which set comes first.",
              "absolute difference of both orders, causal less prefix",
              arms=("causal, short first", "prefix, short first")),
        Claim("twice", "Reading the context twice helps a causal reader.",
              "accuracy, mean of both orders, twice less causal",
              arms=("twice, short first", "causal, short first")),
        Claim("masked", "A loss on masked tokens of the prefix helps its reader.",
              "accuracy, mean of both orders, prefix with that loss less prefix",
              arms=("masked, short first", "prefix, short first")),
        Claim("maps", "Separate maps of the prefix help its reader more than wider layers do.",
              "accuracy, mean of both orders, separate maps less shared maps and wider layers",
              arms=("separate, short first", "wide, short first")),
    )  # fmt: skip
    null = Claim("none", "Without a symbol in common the answer stays unknown.",
                 "accuracy less 1/24, prefix")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each way of reading in both orders."""
        found = dict[str, float]()
        for order in ("short first", "long first"):
            for how in WAYS:
                tick(f"{how}, {order}")
                found[f"{how}, {order}"] = _accuracy(how, order, seed, tiny)
        mean = {
            how: sum(v for name, v in found.items() if name.startswith(f"{how},")) / 2
            for how in WAYS
        }
        gap = {
            how: abs(found[f"{how}, short first"] - found[f"{how}, long first"])
            for how in ("causal", "prefix")
        }
        tick("nothing in common")
        return {
            "prefix": mean["prefix"] - mean["causal"],
            "order": gap["causal"] - gap["prefix"],
            "twice": mean["twice"] - mean["causal"],
            "masked": mean["masked"] - mean["prefix"],
            "maps": mean["separate"] - mean["wide"],
            "none": _accuracy("prefix", "none", seed, tiny) - 1 / SYMBOLS,
            **{f"accuracy | {arm}": v for arm, v in found.items()},
        }


class _Reader(nn.Module):
    """Two linear attentions with maps between; the last token's state predicts the symbol."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.symbols = nn.Embedding(SYMBOLS + 2, DIM)
        self.sides = nn.Embedding(3, DIM)
        maps, n = "separate" if how == "separate" else "shared", WIDE if how == "wide" else HIDDEN
        self.layers = nn.ModuleList(
            LinearAttention(DIM, 4, prefix_projection=maps) for _ in range(2)
        )
        self.maps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, n), nn.GELU(), nn.Linear(n, DIM))
            for _ in range(2)
        )
        self.head = nn.Linear(DIM, SYMBOLS)

    def forward(self, ids: Tensor, side: Tensor) -> Tensor:
        return self.head(self.states(ids, side)[:, -1])

    def states(self, ids: Tensor, side: Tensor) -> Tensor:
        """Return the states of all tokens."""
        if self.how == "twice":
            ids, side = torch.cat([ids[:, :-1], ids], 1), torch.cat([side[:, :-1], side], 1)
        h = self.symbols(ids) + self.sides(side)
        prefix = 0 if self.how in ("causal", "twice") else ids.shape[1] - 1
        for layer, change in zip(self.layers, self.maps, strict=True):
            h = layer(h, prefix=prefix)
            h = h + change(h)
        return h


def _loss(net: _Reader, ids: Tensor, side: Tensor, answer: Tensor) -> Tensor:
    """Return the answer's cross-entropy, for ``masked`` in a mean with that of masked tokens."""
    if net.how != "masked":
        return cross_entropy(net(ids, side), answer)
    hidden = (torch.rand(ids.shape) < MASKED) & (side < 2)
    told = net.head(net.states(ids.masked_fill(hidden, SYMBOLS + 1), side))
    masked = cross_entropy(told[hidden], ids[hidden])
    return (1 - WEIGHT) * cross_entropy(told[:, -1], answer) + WEIGHT * masked


def _data(order: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return symbols, the side of each (2: the question), and the common symbol."""
    draw = torch.Generator().manual_seed(seed)
    n = FIT + HELD
    mixed = torch.rand(n, SYMBOLS, generator=draw).argsort(1)
    a, b = mixed[:, :SHORT], mixed[:, SHORT : SHORT + LONG].clone()
    answer = a.gather(1, torch.randint(SHORT, (n, 1), generator=draw))
    if order == "none":
        answer = torch.randint(SYMBOLS, (n, 1), generator=draw)
    else:
        b.scatter_(1, torch.randint(LONG, (n, 1), generator=draw), answer)
    parts = (b, a) if order == "long first" else (a, b)
    ids = torch.cat([*parts, torch.full((n, 1), SYMBOLS)], 1)
    sizes = torch.tensor([*(p.shape[1] for p in parts), 1])
    return ids, torch.arange(3).repeat_interleave(sizes).expand(n, -1), answer.squeeze(1)


def _accuracy(how: str, order: str, seed: int, tiny: bool) -> float:
    ids, side, answer = _data(order, seed)
    net = drawn(lambda: _Reader(how), seed)
    steps = TINY if tiny else STEPS // 4 if order == "none" else STEPS
    minimise(
        lambda r: _loss(net, ids[r], side[r], answer[r]), net.parameters(), FIT,
        steps=steps, seed=seed, rate=5e-3, batch=64,
    )  # fmt: skip
    with torch.no_grad():
        told = net(ids[FIT:], side[FIT:]).argmax(1)
    return float((told == answer[FIT:]).double().mean())
