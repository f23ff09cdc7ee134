"""A match of three tokens, by attention over single keys and over pairs of keys."""

from itertools import count
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sonde.layers import Attention
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

PRIME, SET, WAVES, EXAMPLES, JUDGE, STEPS, TINY = 11, 6, 2, 4_000, 1_000, 900, 4
INPUT, WIDTH = 2 * WAVES + 1, 16


@final
class MatchesOfThreeStudy(Study):
    """One layer of attention of order two or three, in nets of as many numbers.

    A blank token behind the numbers is what a number without a match can attend to.
    """

    name = "matches-of-three"
    title = "does attention over pairs of keys find what plain attention cannot?"
    paper = "alman2024kronecker"
    fidelity = "the task of the theory at small size, modulo 11 in place of a large prime; sizes "
    fidelity += (
        "and the blank token were chosen on seed 100, after sets of eight modulo 31 without "
    )
    fidelity += "that token, of which neither order learned anything"
    data = "simulated sets of six numbers: is a number one of three that add up to 0 modulo 11?"
    claims = (
        Claim("order", "Attention over pairs of keys finds matches of three better than plain "
              "attention with as many layers and numbers.",
              "accuracy, order three less order two", arms=("order 3", "order 2")),
        Claim("told", "It finds most of what the commoner answer misses.",
              "share of the errors of the commoner answer that are gone, less 0.5"),
        Claim("plain", "Plain attention finds some.",
              "accuracy of order two, less chance, which is the share of the commoner answer"),
    )  # fmt: skip
    null = Claim("lots", "Matches that are dealt out by lot are not told of other sets.",
                 "correlation of the answers of order three with the truth")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train both orders on the same sets."""
        x, match = matches(seed)
        steps = TINY if tiny else STEPS
        yes = float(match[EXAMPLES:].double().mean())
        right = {"commoner answer": max(yes, 1 - yes)}
        for order in (2, 3):
            tick(f"order {order}")
            said = _said(order, x, match, seed, steps) > 0
            right[f"order {order}"] = float((said == match[EXAMPLES:].bool()).double().mean())
        tick("matches by lot")
        two, three, common = right["order 2"], right["order 3"], right["commoner answer"]
        return {
            "order": three - two,
            "told": (three - common) / (1 - common) - 0.5,
            "plain": two - common,
            "lots": by_lot(x, match, seed, steps),
            **{f"accuracy | {arm}": value for arm, value in right.items()},
        }


def by_lot(x: Tensor, match: Tensor, seed: int, steps: int) -> float:
    """Return the correlation of answers and matches, if these are dealt out to other sets."""
    dealt = match[torch.randperm(len(match), generator=torch.Generator().manual_seed(seed))]
    said = _said(3, x, dealt, seed, steps)
    return float(torch.corrcoef(torch.stack([said.flatten(), dealt[EXAMPLES:].flatten()]))[0, 1])


def matches(seed: int) -> tuple[Tensor, Tensor]:
    """Return sets of numbers on circles with a blank token, and which numbers have a match."""
    draw = torch.Generator().manual_seed(seed)
    number = torch.randint(PRIME, (EXAMPLES + JUDGE, SET), generator=draw)
    total = number[:, :, None, None] + number[:, None, :, None] + number[:, None, None, :]
    one, two, three = torch.meshgrid(*[torch.arange(SET)] * 3, indexing="ij")
    are_three = (one != two) & (two != three) & (one != three)
    match = ((total % PRIME == 0) & are_three).flatten(2).any(2).float()
    angle = 2 * torch.pi * number.unsqueeze(2) * torch.arange(1, WAVES + 1) / PRIME
    x = torch.zeros(len(number), SET + 1, INPUT)
    x[:, :SET, :-1] = torch.cat([angle.cos(), angle.sin()], 2)
    x[:, SET, -1] = 1.0
    return x, match


class _Matcher(nn.Module):
    """A map of numbers on a circle, an attention layer, and a map of each token."""

    def __init__(self, order: Literal[2, 3], width: int = WIDTH) -> None:
        super().__init__()
        self.enter, self.attention = nn.Linear(INPUT, width), Attention(width, 1, order=order)
        self.head = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(self.enter(x))).squeeze(2)[:, :SET]

    def numbers(self) -> int:
        """Return how many numbers are trained."""
        return sum(p.numel() for p in self.parameters())


def _said(order: Literal[2, 3], x: Tensor, match: Tensor, seed: int, steps: int) -> Tensor:
    """Return the logits for the numbers of other sets."""
    least = _Matcher(3).numbers()
    width = next(w for w in count(WIDTH) if _Matcher(order, w).numbers() >= least)
    net = drawn(lambda: _Matcher(order, width), seed)
    minimise(
        lambda rows: binary_cross_entropy_with_logits(net(x[rows]), match[rows]),
        net.parameters(), EXAMPLES, steps=steps, seed=seed, rate=5e-3,
    )  # fmt: skip
    with torch.no_grad():
        return net(x[EXAMPLES:])
