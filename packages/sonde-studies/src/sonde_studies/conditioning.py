"""Two places for a condition: a separate token, or shifts of the norms.

Digits as sequences of eight rows; the condition is a question about the digit. Beside it, what a
layer norm does for a recurrent net that reads digits in pieces.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.flop_counter import FlopCounterMode

from sonde.layers import Attention, ConditionalNorm
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies._recurrent_norms import recurrent_range
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, DIM = 1_000, 300, 4, 32
RECURRENT_STEPS = 600
QUESTIONS = ((0, 2, 4, 6, 8), (5, 6, 7, 8, 9), (0, 6, 8, 9), (2, 3, 5, 7), (1, 4, 7))


@final
class ConditioningStudy(Study):
    """Two small transformers that answer questions about digits."""

    name = "conditioning"
    title = "should a condition be a token, or shift the norms?"
    paper = "lavi2025"
    fidelity = "two blocks and five questions in place of a language model and pictures"
    data = "digits: 1,000 to train on, 797 to judge, each with one of five questions or four marks"
    claims = (
        Claim("norms", "Shifted norms answer as well as a token, to two points.",
              "accuracy, norms (7 % more parameters) less token, and 0.02",
              arms=("norms", "token")),
        Claim("tokens", "Shifts of each token's own norms tell marked tokens better than marks of "
              "the row do, given to all tokens.",
              "accuracy of naming the darker half, marks by token (9 % fewer parameters) less by "
              "row",
              arms=("marks, by token", "marks, by row")),
        Claim("recurrent", "After as many training steps a recurrent net with a layer norm is "
              "right more often.",
              "accuracy of a recurrent net, with a norm less without",
              arms=("recurrent, layer", "recurrent, none")),
        Claim("centred", "It is right more often than with a norm of length alone.",
              "accuracy of a recurrent net, layer norm less root-mean-square norm",
              arms=("recurrent, layer", "recurrent, length")),
    )  # fmt: skip
    null = Claim("blind", "Without the condition both answer alike.",
                 "accuracy, norms less token, all conditions 0",
                 arms=("norms, blind", "token, blind"))  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train both, with conditions and without; run a recurrent net."""
        x, label = shuffled_digits(seed)
        draw = torch.Generator().manual_seed(seed)
        question = torch.randint(len(QUESTIONS), (len(x),), generator=draw)
        member = torch.zeros(len(QUESTIONS), 10)
        for i, kinds in enumerate(QUESTIONS):
            member[i, list(kinds)] = 1.0
        truth, code = member[question, label], torch.eye(len(QUESTIONS))[question]
        x = x.reshape(-1, 8, 8)
        found = dict[str, float]()
        for how in ("token", "norms"):
            for told, c in (("", code), (", blind", torch.zeros_like(code))):
                tick(how + told)
                net = drawn(lambda how=how: _Net(how), seed)
                found[how + told] = _right(net, x, c, truth, seed, TINY if tiny else STEPS)
        tick("marks")
        mark = torch.rand(len(x), 8, generator=draw).argsort(1) < 4
        ink = x.sum(2)
        marked = (torch.where(mark, ink, -ink).sum(1) > 0).float()
        for arm, c in (("by row", mark.float()), ("by token", mark.float()[..., None])):
            tick(f"marks, {arm}")
            net = drawn(lambda c=c: _Net("norms", c.shape[-1]), seed)
            found[arm] = _right(net, x, c, marked, seed, TINY if tiny else STEPS)
        tick("recurrent")
        steps = TINY if tiny else RECURRENT_STEPS
        ranges = list[dict[str, float]]()
        for norm in ("none", "length", "layer"):
            tick(f"recurrent, {norm}")
            ranges.append(recurrent_range(norm, x.flatten(1), label, seed, steps))
        plain, by_length, normed = ranges
        costs = {
            how: _products(drawn(lambda how=how: _Net(how), seed)) for how in ("token", "norms")
        }
        return {
            "norms": found["norms"] - found["token"] + 0.02,
            "cost": 1 - costs["norms"] / costs["token"],
            "tokens": found["by token"] - found["by row"],
            "recurrent": normed["right"] - plain["right"],
            "centred": normed["right"] - by_length["right"],
            "blind": found["norms, blind"] - found["token, blind"],
            **{f"accuracy | {arm}": v for arm, v in found.items()},
            **{f"{name} | without": v for name, v in plain.items()},
            **{f"{name} | of length alone": v for name, v in by_length.items()},
            **{f"{name} | with": v for name, v in normed.items()},
        }


class _Net(nn.Module):
    """Two blocks; the condition enters as a first token, or through the norms."""

    def __init__(self, how: str, c: int = len(QUESTIONS)) -> None:
        super().__init__()
        self.how = how
        self.first, self.place = nn.Linear(8, DIM), nn.Parameter(0.1 * torch.randn(8, DIM))
        self.token = nn.Linear(c, DIM) if how == "token" else None
        size = 0 if how == "token" else c
        self.norms = nn.ModuleList(ConditionalNorm(DIM, size) for _ in range(4))
        self.attention = nn.ModuleList(Attention(DIM, 4) for _ in range(2))
        self.maps = nn.ModuleList(
            nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))
            for _ in range(2)
        )
        self.head = nn.Linear(DIM, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.first(x) + self.place
        if self.token is not None:
            h = torch.cat([self.token(c)[:, None], h], 1)
        given = c if self.how == "norms" else None
        for i in range(2):
            n = self.norms[2 * i](h, condition=given)
            h = h + self.attention[i](n) - n
            h = h + self.maps[i](self.norms[2 * i + 1](h, condition=given))
        return self.head(h.mean(1)).squeeze(1)


def _right(net: nn.Module, x: Tensor, c: Tensor, truth: Tensor, seed: int, steps: int) -> float:
    """Train a net on yes-no questions, and return its accuracy on test rows."""
    minimise(
        lambda r: binary_cross_entropy_with_logits(net(x[r], c[r]), truth[r]),
        net.parameters(), FIT, steps=steps, seed=seed,
    )  # fmt: skip
    with torch.no_grad():
        right = (net(x[FIT:], c[FIT:]) > 0) == truth[FIT:].bool()
    return float(right.double().mean())


@torch.no_grad()
def _products(net: nn.Module) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 8, 8), torch.zeros(1, len(QUESTIONS)))
    return counter.get_total_flops()
