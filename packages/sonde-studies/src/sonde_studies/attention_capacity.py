"""Capacity of attention with fixed random scores and trained values.

The simulated target is one that a head of random scores can express.
"""

from typing import final

import torch
from torch import Tensor, nn

from sonde.layers import Attention
from sonde.stats import ridge_of_rows
from sonde_studies.arms import note, part
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn

DIM, TOKENS, SIZES, JUDGE = 8, 10, (100, 400, 1_600), 1_000
HEADS, BIAS = {"few": 8, "many": 32}, 0.2


@final
class AttentionCapacityStudy(Study):
    """Ridge regression on mixtures of random heads, of random units and of the tokens' mean."""

    name = "attention-capacity"
    title = "what do heads with random scores learn?"
    paper = "fu2023randomfeatures"
    fidelity = (
        "targets of the theory at small size; the losses are ours; biased scores are those of "
        "queries and keys drawn around a multiple of the identity"
    )
    data = "simulated: averages over matching tokens"
    claims = (
        Claim("learned", "Random scores with trained values learn an average over matching tokens.",
              "R2 at 1,600 examples", above=0.25),
        Claim("rows", "With a quarter of the examples random heads learn an average over "
              "matching tokens better than as many random units of all tokens.",
              "R2, random heads at 400 examples less units at 1,600",
              arms=("heads, 400", "units, 1600")),
        Claim("mean", "They beat a linear map of the tokens' mean.",
              "R2 at 1,600 examples, random heads less mean, which has fewer numbers to fit",
              arms=("heads, 1600", "mean")),
        Claim("many", "Four times as many heads, with four times the numbers, learn it better.",
              "R2 at 1,600 examples, 32 heads less 8",
              arms=("many heads, 1600", "heads, 1600")),
        Claim("biased", "Of matches of whole tokens, heads whose scores have the identity as mean "
              "learn more than heads of mean 0.", "R2 at 400 examples, biased less of mean 0",
              arms=("whole tokens, biased", "whole tokens, mean 0")),
    )  # fmt: skip
    null = Claim("noise", "A target of other examples is not learned.",
                 "correlation of what is told with the target of another example")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Fit the ridge regressions."""
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
        whole = torch.relu(x[:, 1:] @ x[:, 0].unsqueeze(2)).squeeze(2)
        alike = (whole * (x[:, 1:] @ v)).mean(1, keepdim=True)
        by_mean = {
            name: _r2(_mixtures(x, HEADS["few"], seed, shift), alike, SIZES[1],
                      f"whole tokens, {name}")
            for name, shift in (("mean 0", 0.0), ("biased", BIAS))
        }  # fmt: skip
        other = y[torch.randperm(n, generator=draw)]
        return {
            "learned": r2[SIZES[-1]],
            "rows": r2[SIZES[1]] - free[SIZES[-1]],
            "mean": r2[SIZES[-1]] - mean,
            "many": more - r2[SIZES[-1]],
            "biased": by_mean["biased"] - by_mean["mean 0"],
            "noise": float(torch.corrcoef(torch.stack(_told(basis, other, SIZES[-1])))[0, 1]),
            **{f"R2 | {size}": value for size, value in r2.items()},
            **{f"R2 | random units, {size}": value for size, value in free.items()},
            "R2 | mean": mean,
            **{f"R2 of whole tokens | {name}": value for name, value in by_mean.items()},
            "R2 | many heads, 1600": more,
        }


def _mixtures(x: Tensor, heads: int, seed: int, shift: float = 0.0) -> Tensor:
    """Return each random head's mixture of the states, as the first token sees it.

    Heads share the width between them, and those of the paper each read all of a token: so the
    states are padded with zeros to ``heads`` times their width. ``shift`` times the identity is
    added to each head's maps of queries and of keys.
    """
    layer = drawn(lambda: Attention(heads * DIM, heads, frozen="qk", scores="relu"), seed)
    with torch.no_grad():
        for name in ("query", "key"):
            weight = layer.maps[name].get_parameter("weight")
            weight[:, :DIM] += shift * torch.eye(DIM).repeat(heads, 1)
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
