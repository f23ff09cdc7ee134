"""Capacity of attention: fixed random scores with trained values, and keys that are pairs.

Two simulated tasks: a target that a head of random scores can express, and a match of three tokens.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sonde.layers import Attention
from sonde.stats import ridge_of_rows
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

DIM, TOKENS, SIZES, JUDGE = 8, 10, (100, 400, 1_600), 1_000
PRIME, SET, EXAMPLES, STEPS, TINY = 31, 8, 4_000, 900, 4


@final
class AttentionCapacityStudy(Study):
    """Ridge regression on mixtures of random heads, and order two against order three."""

    name = "attention-capacity"
    title = "what do random heads learn, and when do keys have to be pairs?"
    paper = "fu2023randomfeatures"
    fidelity = "targets and tasks of the theory at small size; the losses are ours"
    data = "simulated: averages over matching tokens; do three numbers add up to 0 modulo 31?"
    claims = (
        Claim("rows", "Random scores with trained values learn an average over matching tokens, "
              "better with more examples.", "R2, 1,600 examples less 100"),
        Claim("mean", "They beat a linear map of the tokens' mean.",
              "R2 at 1,600 examples, random heads less mean"),
        Claim("order", "Attention over pairs of keys finds matches of three that plain attention "
              "does not, with as many layers.", "accuracy, order three less order two"),
    )  # fmt: skip
    null = Claim("noise", "A target of other examples is not learned.",
                 "R2 with shuffled targets, and 0 where it is below")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Fit the ridge regressions, then train both orders."""
        draw = torch.Generator().manual_seed(seed)
        n = SIZES[-1] + JUDGE
        x = nn.functional.normalize(torch.randn(n, TOKENS, DIM, generator=draw), dim=2)
        w, v = torch.randn(2, DIM, generator=draw)
        score = torch.relu(x[:, 1:] @ (w * x[:, 0]).unsqueeze(2)).squeeze(2)
        y = (score * (x[:, 1:] @ v)).mean(1, keepdim=True)
        tick("random heads")
        heads = drawn(lambda: Attention(DIM, 8, frozen="qk", scores="relu"), seed)
        with torch.no_grad():
            basis = heads.features(x)[:, 0]
        basis = torch.cat([basis, x.mean(1)], 1)
        r2 = {size: _r2(basis, y, size) for size in SIZES}
        mean = _r2(x.mean(1), y, SIZES[-1])
        other = y[torch.randperm(n, generator=draw)]
        found = {}
        for order in (2, 3):
            tick(f"order {order}")
            found[order] = _matched(order, seed, tiny)
        return {
            "rows": r2[SIZES[-1]] - r2[SIZES[0]],
            "mean": r2[SIZES[-1]] - mean,
            "order": found[3] - found[2],
            "noise": max(0.0, round(_r2(basis, other, SIZES[-1]), 2)),
            **{f"R2 | {size}": value for size, value in r2.items()},
            "R2 | mean": mean,
            **{f"accuracy | order {order}": value for order, value in found.items()},
        }


def _r2(x: Tensor, y: Tensor, n: int) -> float:
    weight, bias = ridge_of_rows(x[:n].double(), y[:n].double())
    told = x[-JUDGE:].double() @ weight + bias
    truth = y[-JUDGE:].double()
    return float(1 - (told - truth).square().mean() / (truth - truth.mean()).square().mean())


class _Matcher(nn.Module):
    """An attention layer over tokens for numbers on a circle, and a map of each token."""

    def __init__(self, order: int) -> None:
        super().__init__()
        self.attention = Attention(12, 1, order=order)
        self.head = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x)).squeeze(2)


def _matched(order: int, seed: int, tiny: bool) -> float:
    """Return the accuracy of detecting, for each number, two others that complete it."""
    draw = torch.Generator().manual_seed(seed)
    number = torch.randint(PRIME, (EXAMPLES + JUDGE, SET), generator=draw)
    total = number[:, :, None, None] + number[:, None, :, None] + number[:, None, None, :]
    match = (total % PRIME == 0).flatten(2).any(2).float()
    angle = 2 * torch.pi * number.unsqueeze(2) * torch.arange(1, 7) / PRIME
    x = torch.cat([angle.cos(), angle.sin()], 2)
    net = drawn(lambda: _Matcher(order), seed)
    minimise(
        lambda rows: binary_cross_entropy_with_logits(net(x[rows]), match[rows]),
        net.parameters(), EXAMPLES, steps=TINY if tiny else STEPS, seed=seed, rate=5e-3,
    )  # fmt: skip
    with torch.no_grad():
        told = net(x[EXAMPLES:]) > 0
    return float((told == match[EXAMPLES:].bool()).double().mean())
