"""Style transfer between two domains by swapped codes of content and style.

Digits as they are and inverted ones of less contrast; the domain of a picture is its style.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from sonde.train import Separate
from sonde_studies._recipe_data import learned, mlp, shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, CONTENT, STYLE = 1_000, 900, 10, 16, 2


@final
class SwappedCodesStudy(Study):
    """An autoencoder with two codes, with and without an adversary on the style."""

    name = "swapped-codes"
    title = "does a picture keep its digit and change its style if codes are swapped?"
    paper = "ganin2015reversal"
    fidelity = "reconstructed: no discriminator of pictures; nets that saw real pictures judge"
    data = "digits, half of them inverted at 0.7 of the contrast; 1,000 to train on, 797 to judge"
    claims = (
        Claim("style", "Nine in ten swapped pictures have the style whose code they got.",
              "accuracy of the style that a judge sees, less 0.9"),
        Claim("content", "Eight in ten show the digit whose code they got.",
              "accuracy of the digit that a judge sees, less 0.8"),
        Claim("adversary", "The adversary makes the swapped style come out more often.",
              "accuracy of the style, with less without"),
        Claim("price", "It costs no more than two points of the digit.",
              "accuracy of the digit, with less without, and 0.02"),
    )  # fmt: skip
    null = Claim("within", "Swapped within one style with either of two partners they keep it.",
                 "accuracy of the style, one partner less another")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train judges and both autoencoders, and judge swapped images."""
        x, label = shuffled_digits(seed)
        style = (torch.rand(len(x), generator=torch.Generator().manual_seed(seed)) < 0.5).long()
        x = torch.where(style[:, None] == 1, 1 - 0.7 * x, x)
        steps = TINY if tiny else STEPS
        tick("judges")
        judges = {
            kind: learned(mlp(64, n_classes=n), x[:FIT], truth[:FIT], seed + 77, steps // 3).module
            for kind, truth, n in (("digit", label, 10), ("style", style, 2))
        }
        found = dict[str, float]()
        for arm, weight in (("adversary", 1.0), ("none", 0.0)):
            tick(arm)
            net = _trained(x[:FIT], style[:FIT], weight, seed, steps)
            found |= {
                f"{case}, {kind} | {arm}": v
                for (case, kind), v in _judged(net, judges, x[FIT:], label[FIT:], style[FIT:])
            }
        with_it, without = (
            {kind: found[f"swapped, {kind} | {arm}"] for kind in judges}
            for arm in ("adversary", "none")
        )
        return {
            "style": with_it["style"] - 0.9,
            "content": with_it["digit"] - 0.8,
            "adversary": with_it["style"] - without["style"],
            "price": with_it["digit"] - without["digit"] + 0.02,
            "within": found["within, style | adversary"] - found["again, style | adversary"],
            **found,
        }


class _Codes(nn.Module):
    """Encoders of content and style, and a decoder of both codes."""

    def __init__(self) -> None:
        super().__init__()
        self.content, self.style = (
            nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, n)) for n in (CONTENT, STYLE)
        )
        self.decoder = nn.Sequential(
            nn.Linear(CONTENT + STYLE, 96), nn.ReLU(), nn.Linear(96, 64), nn.Sigmoid()
        )
        self.adversary = Separate("adversary", width=2, strength=1.0)

    def drawn(self, content: Tensor, style: Tensor) -> Tensor:
        """Decode images from codes."""
        return self.decoder(torch.cat([content, style], 1))


def _trained(x: Tensor, style: Tensor, weight: float, seed: int, steps: int) -> _Codes:
    def made() -> _Codes:
        net = _Codes()
        net.adversary(net.content(x[:2]), one_hot(style[:2], 2).float())  # its width
        return net

    net = drawn(made, seed)

    def loss(rows: Tensor) -> Tensor:
        content, own = net.content(x[rows]), net.style(x[rows])
        rebuilt = (net.drawn(content, own) - x[rows]).square().sum(1).mean()
        told = cross_entropy(own, style[rows])
        return rebuilt + told + weight * net.adversary(content, one_hot(style[rows], 2).float())

    minimise(loss, net.parameters(), len(x), steps=steps, seed=seed)
    return net


@torch.no_grad()
def _judged(
    net: _Codes, judges: dict[str, nn.Module], x: Tensor, label: Tensor, style: Tensor
) -> list[tuple[tuple[str, str], float]]:
    """Return how often judges see the content code's digit and the other code's style."""
    content, own = net.content(x), net.style(x)
    order = torch.arange(len(x))
    other = {
        "rebuilt": order,
        "swapped": _partner(style, 1 - style),
        "within": _partner(style, style),
        "again": _partner(style, style, 2),
    }
    made = {case: net.drawn(content, own[rows]) for case, rows in other.items()}
    truth = {case: {"digit": label, "style": style[rows]} for case, rows in other.items()}
    return [
        ((case, kind), float((judge(made[case]).argmax(1) == truth[case][kind]).double().mean()))
        for case in made
        for kind, judge in judges.items()
    ]


def _partner(style: Tensor, wanted: Tensor, ahead: int = 1) -> Tensor:
    """Return for each row the index of another row with the wanted style."""
    found = torch.zeros_like(style)
    for kind in (0, 1):
        rows, asked = (torch.nonzero(v == kind).flatten() for v in (style, wanted))
        found[asked] = rows[torch.arange(ahead, len(asked) + ahead) % len(rows)]
    return found
