"""Capacity of attention: fixed random scores with trained values, and keys that are pairs.

Two simulated tasks: a target that a head of random scores can express, and a match of three tokens.
"""

from itertools import count
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sonde.layers import Attention
from sonde.stats import ridge_of_rows
from sonde_studies.arms import note, part
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

DIM, TOKENS, SIZES, JUDGE = 8, 10, (100, 400, 1_600), 1_000
HEADS = {"few": 8, "many": 32}
PRIME, SET, EXAMPLES, STEPS, TINY = 31, 8, 4_000, 900, 4


@final
class AttentionCapacityStudy(Study):
    """Ridge regression on mixtures of random heads, and order two against order three."""

    name = "attention-capacity"
    title = "what do random heads learn, and when do keys have to be pairs?"
    paper = "fu2023randomfeatures"
    fidelity = (
        "targets and tasks of the theory at small size; the losses are ours, weights have mean 0"
    )
    data = "simulated: averages over matching tokens; do three numbers add up to 0 modulo 31?"
    claims = (
        Claim("learned", "Random scores with trained values learn an average over matching tokens.",
              "R2 at 1,600 examples", above=0.25),
        Claim("rows", "With a quarter of the examples they learn it better than as many random "
              "units of all tokens.", "R2, random heads at 400 examples less units at 1,600",
              arms=("heads, 400", "units, 1600")),
        Claim("mean", "They beat a linear map of the tokens' mean.",
              "R2 at 1,600 examples, random heads less mean, which has fewer numbers to fit",
              arms=("heads, 1600", "mean")),
        Claim("many", "Four times as many heads, with four times the numbers, learn it better.",
              "R2 at 1,600 examples, 32 heads less 8",
              arms=("many heads, 1600", "heads, 1600")),
        Claim("told", "Attention over pairs of keys finds matches of three.",
              "accuracy less the share of the commoner answer"),
        Claim("order", "Better than plain attention with as many layers and numbers.",
              "accuracy, order three less order two", premise="told",
              arms=("order 3", "order 2")),
    )  # fmt: skip
    null = Claim("noise", "A target of other examples is not learned.",
                 "correlation of what is told with the target of another example")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Fit the ridge regressions, then train both orders."""
        draw = torch.Generator().manual_seed(seed)
        n = SIZES[-1] + JUDGE
        x = nn.functional.normalize(torch.randn(n, TOKENS, DIM, generator=draw), dim=2)
        w, v = torch.randn(2, DIM, generator=draw)
        score = torch.relu(x[:, 1:] @ (w * x[:, 0]).unsqueeze(2)).squeeze(2)
        y = (score * (x[:, 1:] @ v)).mean(1, keepdim=True)
        tick("random heads")
        basis = _mixtures(x, HEADS["few"], seed)
        more = _r2(_mixtures(x, HEADS["many"], seed), y, SIZES[-1], "many heads, 1600")
        r2 = {size: _r2(basis, y, size, f"heads, {size}") for size in SIZES}
        units = drawn(lambda: nn.Linear(TOKENS * DIM, basis.shape[1]), seed)
        with torch.no_grad():
            flat = torch.relu(units(x.flatten(1) * DIM**0.5))  # inputs of variance 1
        free = {size: _r2(flat, y, size, f"units, {size}") for size in SIZES}
        mean = _r2(x.mean(1), y, SIZES[-1], "mean")
        other = y[torch.randperm(n, generator=draw)]
        found = {}
        for order in (2, 3):
            tick(f"order {order}")
            found[order], common = _matched(order, seed, tiny)
        return {
            "learned": r2[SIZES[-1]],
            "rows": r2[SIZES[1]] - free[SIZES[-1]],
            "mean": r2[SIZES[-1]] - mean,
            "many": more - r2[SIZES[-1]],
            "told": found[3] - common,
            "order": found[3] - found[2],
            "noise": float(torch.corrcoef(torch.stack(_told(basis, other, SIZES[-1])))[0, 1]),
            **{f"R2 | {size}": value for size, value in r2.items()},
            **{f"R2 | random units, {size}": value for size, value in free.items()},
            "R2 | mean": mean,
            "R2 | many heads, 1600": more,
            **{f"accuracy | order {order}": value for order, value in found.items()},
        }


def _mixtures(x: Tensor, heads: int, seed: int) -> Tensor:
    """Return each random head's mixture of the states, as the first token sees it.

    Heads share the width between them, and those of the paper each read all of a token: so the
    states are padded with zeros to ``heads`` times their width.
    """
    layer = drawn(lambda: Attention(heads * DIM, heads, frozen="qk", scores="relu"), seed)
    with torch.no_grad():
        mixed = layer.features(nn.functional.pad(x, (0, (heads - 1) * DIM)))[:, 0]
    return mixed[:, mixed.std(0) > 0]


def _told(x: Tensor, y: Tensor, n: int) -> list[Tensor]:
    """Return what a ridge regression of the first rows says of the last ones, and the truth."""
    weight, bias = ridge_of_rows(x[:n].double(), y[:n].double())
    return [(x[-JUDGE:].double() @ weight + bias).flatten(), y[-JUDGE:].double().flatten()]


def _r2(x: Tensor, y: Tensor, n: int, arm: str) -> float:
    with part(arm):
        note(rows=n, parameters=x.shape[1] + 1)
    told, truth = _told(x, y, n)
    return float(1 - (told - truth).square().mean() / (truth - truth.mean()).square().mean())


class _Matcher(nn.Module):
    """A map of numbers on a circle, an attention layer, and a map of each token."""

    def __init__(self, order: Literal[2, 3], width: int = 12) -> None:
        super().__init__()
        self.enter, self.attention = nn.Linear(12, width), Attention(width, 1, order=order)
        self.head = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(self.enter(x))).squeeze(2)

    def numbers(self) -> int:
        """Return how many numbers are trained."""
        return sum(p.numel() for p in self.parameters())


def _matched(order: Literal[2, 3], seed: int, tiny: bool) -> tuple[float, float]:
    """Return the accuracy of detecting, for each number, two others, and that of one answer."""
    draw = torch.Generator().manual_seed(seed)
    number = torch.randint(PRIME, (EXAMPLES + JUDGE, SET), generator=draw)
    total = number[:, :, None, None] + number[:, None, :, None] + number[:, None, None, :]
    match = (total % PRIME == 0).flatten(2).any(2).float()
    angle = 2 * torch.pi * number.unsqueeze(2) * torch.arange(1, 7) / PRIME
    x = torch.cat([angle.cos(), angle.sin()], 2)
    least = _Matcher(3).numbers()
    width = next(w for w in count(12) if _Matcher(order, w).numbers() >= least)
    net = drawn(lambda: _Matcher(order, width), seed)
    minimise(
        lambda rows: binary_cross_entropy_with_logits(net(x[rows]), match[rows]),
        net.parameters(), EXAMPLES, steps=TINY if tiny else STEPS, seed=seed, rate=5e-3,
    )  # fmt: skip
    with torch.no_grad():
        told = net(x[EXAMPLES:]) > 0
    truth = match[EXAMPLES:]
    yes = float(truth.double().mean())
    return float((told == truth.bool()).double().mean()), max(yes, 1 - yes)
