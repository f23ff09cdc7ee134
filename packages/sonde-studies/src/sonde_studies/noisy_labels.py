"""Half of the labels are wrong: gains by nested dropout, rate reduction and propagation.

One net on digits, or two that choose rows for each other.
"""

from itertools import count
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.train import NestedDropout, RateReduction, Select
from sonde_studies._mixed_labels import RENEWED, cosines, mixed, spread
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, NOISE, WIDTH, NARROW = 1_000, 2_000, 60, 0.5, 128, 16


@final
class NoisyLabelsStudy(Study):
    """A perceptron on digits, half of whose labels were replaced at random."""

    name = "noisy-labels"
    title = "what helps a net whose labels are half wrong?"
    paper = "rippel2014nested"
    fidelity = "as in the papers, but propagation on pixels and cross entropy beside rate reduction"
    data = "digits: 1,000 to train on, half of their labels drawn anew, 797 clean ones to judge"
    claims = (
        Claim("nested", "Nested dropout (standard deviation 20) answers clean rows better.",
              "accuracy less that of plain training"),
        Claim("narrow", "Its first 16 units answer better than all 128 of plain training.",
              "accuracy, 16 units with nested dropout less 128 without"),
        Claim("rate", "Rate reduction beside the cross entropy helps too.",
              "accuracy less that of plain training"),
        Claim("spread", "Labels spread over neighbours are right more often than the given ones.",
              "share of right labels, spread less given"),
        Claim("taught", "Two nets that choose rows for each other answer clean rows better.",
              "accuracy of co-teaching less that of plain training"),
        Claim("both", "Nested dropout in both nets is worth two points more.",
              "accuracy of co-teaching with nested dropout less without", above=0.02),
        Claim("prototypes", "Labels of the nearest prototype are right more often than given ones.",
              "share of right labels, nearest prototype less given"),
        Claim("joined", "Rate reduction on spread labels mixed with prototypes answers better.",
              "accuracy of rate reduction, on mixed labels less on the given"),
        Claim("more", "And better than plain training on labels that are spread alone.",
              "accuracy, rate reduction on mixed labels less plain training on spread ones"),
    )  # fmt: skip
    null = Claim("clean", "Without noise nested dropout gains nothing.",
                 "accuracy less that of plain")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train in each way on noisy labels, twice on clean ones, and correct the labels."""
        x, label = shuffled_digits(seed)
        draw = torch.Generator().manual_seed(seed)
        wrong = torch.rand(FIT, generator=draw) < NOISE
        noisy = torch.where(wrong, torch.randint(10, (FIT,), generator=draw), label[:FIT])
        steps = TINY if tiny else STEPS

        near = spread(x[:FIT], noisy)

        def trained(given: Tensor, std: float = 0, rate: float = 0, mix: bool = False) -> "_Net":
            tick(f"nested {std:g}, rate {rate:g}")
            net, loss, step = drawn(_Net, seed), RateReduction(), count()
            net.nested = NestedDropout(std=std, per="row", seed=seed) if std else None

            def value(rows: Tensor) -> Tensor:
                nonlocal given
                if mix and next(step) % RENEWED == 0:
                    given = mixed(near, net.body(x[:FIT]).detach(), given)
                total = cross_entropy(net(x[rows]), given[rows])
                return total + rate * loss(net.body(x[rows]), given[rows]) if rate else total

            minimise(value, net.parameters(), FIT, steps=steps, seed=seed)
            return net

        def right(net: _Net, width: int = WIDTH) -> float:
            return net.accuracy(x[FIT:], label[FIT:], width)

        plain, nested = trained(noisy), trained(noisy, 20.0)
        rate, joined = trained(noisy, rate=0.1), trained(near.argmax(1), rate=0.1, mix=True)
        alone = trained(near.argmax(1))
        tick("co-teaching")
        pair = [right(_taught(x, noisy, seed, steps, std)) for std in (0.0, 20.0)]
        clean = [trained(label[:FIT]), trained(label[:FIT], 20.0)]
        known = (noisy, near.argmax(1), cosines(rate.body(x[:FIT]), noisy).argmax(1))
        given, after, named = (float((y == label[:FIT]).double().mean()) for y in known)
        return {
            "nested": right(nested) - right(plain),
            "narrow": right(nested, NARROW) - right(plain),
            "rate": right(rate) - right(plain),
            "spread": after - given,
            "taught": pair[0] - right(plain),
            "both": pair[1] - pair[0],
            "prototypes": named - given,
            "joined": right(joined) - right(rate),
            "more": right(joined) - right(alone),
            "clean": right(clean[1]) - right(clean[0]),
            "accuracy | co-teaching": pair[0],
            "accuracy | co-teaching, nested": pair[1],
            "right labels | prototypes": named,
            "accuracy | plain": right(plain),
            "accuracy | nested": right(nested),
            "accuracy | nested, 16 units": right(nested, NARROW),
            "accuracy | rate reduction": right(rate),
            "accuracy | rate reduction, mixed labels": right(joined),
            "accuracy | plain, spread labels": right(alone),
            "right labels | given": given,
            "right labels | spread": after,
        }


class _Net(nn.Module):
    """Two hidden layers and a head, with nested dropout on the second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.nested: NestedDropout | None = None
        parts = (nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, WIDTH), nn.ReLU())
        self.body, self.head = nn.Sequential(*parts), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        states = self.body(x)
        return self.head(states if self.nested is None else self.nested.change(states))

    @torch.no_grad()
    def accuracy(self, x: Tensor, label: Tensor, width: int) -> float:
        """Return the accuracy with the first units only."""
        said = self.head(NestedDropout.truncated(width)(self.body(x))).argmax(1)
        return float((said == label).double().mean())


def _taught(x: Tensor, given: Tensor, seed: int, steps: int, std: float) -> _Net:
    """Return one of two nets that select small-loss rows for each other."""
    pair = nn.ModuleList(drawn(_Net, seed + 1_000 * i) for i in range(2))
    for net in pair:
        net.nested = NestedDropout(std=std, per="row", seed=seed) if std else None  # pyright: ignore
    select, done = Select("co_teaching", drop=NOISE, steps=steps // 4), 0

    def value(rows: Tensor) -> Tensor:
        nonlocal done
        each = [cross_entropy(net(x[rows]), given[rows], reduction="none") for net in pair]
        chosen = select(each[0].detach(), each[1].detach(), step=done)
        done += 1
        return sum((e * w).sum() / w.sum() for e, w in zip(each, chosen, strict=True))  # pyright: ignore

    minimise(value, pair.parameters(), len(given), steps=steps, seed=seed)
    return pair[0]  # pyright: ignore
