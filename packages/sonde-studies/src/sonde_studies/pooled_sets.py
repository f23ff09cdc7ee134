"""Memories inside a trained net: pooling of sets, and a lookup among patterns of its own.

Simulated: sets of short sequences; half of the sets have a motif in one sequence. Real: digits
with few labels.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from sonde.layers import Hopfield
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy, drawn, learn_labels, minimise

LETTERS, LENGTH, MOTIF, ITEMS, DIM = 8, 10, 5, 40, 24
FIT, HELD, STEPS, TINY = 1000, 600, 1500, 5
LABELS, WIDTH, PATTERNS, BLOCK, LEARN = 200, 32, 16, 24, 400


@final
class PooledSetsStudy(Study):
    """A dense memory that pools sets, and a memory that looks up patterns, in trained nets."""

    name = "pooled-sets"
    title = "do memories pool sets and look up patterns inside a trained net?"
    paper = "ramsauer2021hopfield"
    fidelity = "one learned query, one step; patterns are both keys and values"
    seconds = 25.0
    data = "simulated: 40 sequences of ten letters a set; digits with 200 labels"
    claims = (
        Claim("mean", "A memory that pools finds a motif in one sequence of 40 more often than "
              "the mean over sequences.",
              "accuracy, pooled by a memory less by the mean", arms=("memory", "mean")),
        Claim("max", "It finds it more often than the largest value of each unit.",
              "accuracy, pooled by a memory less by the maximum",
              arms=("memory", "maximum")),
        Claim("points", "In 19 of 20 sets with the motif its sequence has the memory's largest "
              "weight.",
              "share of sets with the motif in which its sequence has the largest weight, "
              "less 0.95"),
        Claim("lookup", "With few labels a layer that looks up sixteen patterns is right more "
              "often than two maps of equal size.",
              "accuracy on digits, lookup less a block of two layers", arms=("lookup", "block")),
    )  # fmt: skip
    null = Claim("coins", "Where labels of sets are drawn by lot a memory tells nothing of new "
                 "sets.", "accuracy", above=0.5)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each way of pooling, and both layers."""
        right, most = dict[str, float](), dict[str, float]()
        for arm in ("memory", "mean", "maximum"):
            tick(arm)
            right[arm], most[arm] = _pooled(arm, seed, tiny)
        tick("coins")
        coins = _pooled("memory", seed, tiny, coins=True)[0]
        digits = dict[str, float]()
        for arm in ("lookup", "block"):
            tick(arm)
            digits[arm] = _digits(arm, seed, tiny)
        return {
            "mean": right["memory"] - right["mean"],
            "max": right["memory"] - right["maximum"],
            "points": most["memory"] - 0.95,
            "lookup": digits["lookup"] - digits["block"],
            "coins": coins,
            **{f"accuracy of sets | {arm}": v for arm, v in right.items()},
            **{f"accuracy of digits | {arm}": v for arm, v in digits.items()},
        }


def sets_of(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return sets of sequences of letters, their labels, and where the motif would be.

    Parameters
    ----------
    seed : int

    Returns
    -------
    sets : (set, item, letter), numbers of letters.
    label : 1.0 for sets with the motif.
    place : number of the item that has it in those sets.
    """
    draw = torch.Generator().manual_seed(seed)
    n = FIT + HELD
    sets = torch.randint(LETTERS, (n, ITEMS, LENGTH), generator=draw)
    motif = torch.randint(LETTERS, (MOTIF,), generator=draw)
    label = torch.rand(n, generator=draw) < 0.5
    place = torch.randint(ITEMS, (n,), generator=draw)
    start = torch.randint(LENGTH - MOTIF + 1, (n,), generator=draw)
    rows = label.nonzero()[:, 0]
    for k in range(MOTIF):
        sets[rows, place[rows], start[rows] + k] = motif[k]
    return sets, label.float(), place


@final
class _Sets(nn.Module):
    """Encode each sequence, pool the set, answer."""

    def __init__(self, arm: str) -> None:
        super().__init__()
        self.filters = nn.Conv1d(LETTERS, DIM, MOTIF)
        self.map = nn.Linear(DIM, DIM)
        self.answer = nn.Linear(DIM, 1)
        self.arm = arm
        self.pool = Hopfield(DIM, "pool", n=1) if arm == "memory" else None

    def items(self, sets: Tensor) -> Tensor:
        x = one_hot(sets.flatten(0, 1), LETTERS).float().transpose(1, 2)
        return self.map(self.filters(x).relu().amax(2)).reshape(*sets.shape[:2], DIM)

    def forward(self, sets: Tensor) -> Tensor:
        x = self.items(sets)
        if self.pool is not None:
            pooled = self.pool(x)[:, 0]
        else:
            pooled = x.mean(1) if self.arm == "mean" else x.amax(1)
        return self.answer(pooled)[:, 0]


def _pooled(arm: str, seed: int, tiny: bool, *, coins: bool = False) -> tuple[float, float]:
    """Return accuracy on new sets, and how often the largest weight is at the motif."""
    sets, label, place = sets_of(seed)
    if coins:
        label = (torch.rand(len(sets), generator=torch.Generator().manual_seed(seed)) < 0.5).float()
    net = drawn(lambda: _Sets(arm), seed)
    minimise(
        lambda rows: binary_cross_entropy_with_logits(net(sets[rows]), label[rows]),
        net.parameters(), FIT, steps=TINY if tiny else STEPS, seed=seed, batch=32,
    )  # fmt: skip
    with torch.no_grad():
        right = float(((net(sets[FIT:]) > 0).float() == label[FIT:]).double().mean())
        if net.pool is None or coins:
            return right, 0.0
        real = FIT + label[FIT:].nonzero()[:, 0]
        weights = net.items(sets[real]) @ net.pool.patterns[0]
        return right, float((weights.argmax(1) == place[real]).double().mean())


def _digits(arm: str, seed: int, tiny: bool) -> float:
    x, label = shuffled_digits(seed)
    net = drawn(lambda: _Labels(arm), seed)
    learn_labels(net, x[:LABELS], label[:LABELS], steps=TINY if tiny else LEARN, seed=seed)
    return accuracy(net, x[LABELS:], label[LABELS:])


@final
class _Labels(nn.Module):
    """A layer between two maps: a lookup, or a residual block of equal size."""

    def __init__(self, arm: str) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(64, WIDTH), nn.Linear(WIDTH, 10)
        self.lookup = Hopfield(WIDTH, "lookup", n=PATTERNS) if arm == "lookup" else None
        self.block = None
        if arm == "block":
            self.block = nn.Sequential(nn.Linear(WIDTH, BLOCK), nn.ReLU(), nn.Linear(BLOCK, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        h = self.before(x)
        if self.lookup is not None:
            return self.after(self.lookup(h[:, None])[:, 0])
        assert self.block is not None
        return self.after(h + self.block(h))
