"""Half of the labels are wrong: what nested dropout, rate reduction and propagation save.

One net on digits. The co-teaching of the papers needs two nets and is not here.
"""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.layers import propagate
from sonde.train import NestedDropout, RateReduction
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, NOISE, WIDTH, NARROW = 1_000, 2_000, 60, 0.5, 128, 16


@final
class NoisyLabelsStudy(Study):
    """A perceptron on digits, half of whose labels were drawn anew."""

    name = "noisy-labels"
    title = "what helps a net whose labels are half wrong?"
    paper = "rippel2014nested"
    fidelity = "nested dropout as in the paper; no co-teaching; propagation on pixels"
    data = "digits: 1,000 to train on, half of their labels drawn anew, 797 clean ones to judge"
    claims = (
        Claim(
            "nested",
            "Nested dropout (standard deviation 20) answers clean rows better.",
            "accuracy less that of plain training",
        ),
        Claim(
            "narrow",
            "A fraction of its units is as good as all, to two points.",
            "accuracy with 16 of 128 units less with all, and 0.02",
        ),
        Claim(
            "rate",
            "Rate reduction beside the cross entropy helps too.",
            "accuracy less that of plain training",
        ),
        Claim(
            "spread",
            "Labels spread over neighbours are right more often than the given ones.",
            "share of right labels, spread less given",
        ),
    )
    null = Claim(
        "clean", "Without noise nested dropout gains nothing.", "accuracy less that of plain"
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train four times on noisy labels and twice on clean ones, and spread the labels."""
        x, label = shuffled_digits(seed)
        draw = torch.Generator().manual_seed(seed)
        wrong = torch.rand(FIT, generator=draw) < NOISE
        noisy = torch.where(wrong, torch.randint(10, (FIT,), generator=draw), label[:FIT])
        steps = TINY if tiny else STEPS

        def trained(given: Tensor, std: float = 0.0, rate: float = 0.0) -> Callable[[int], float]:
            tick(f"nested {std:g}, rate {rate:g}")
            nested = NestedDropout(std=std or 1.0, per="row", seed=seed)
            body = drawn(lambda: nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, WIDTH),
                                               nn.ReLU()), seed)  # fmt: skip
            head, loss = drawn(lambda: nn.Linear(WIDTH, 10), seed), RateReduction()

            def value(rows: Tensor) -> Tensor:
                states = body(x[rows])
                shown = nested.change(states) if std else states
                total = cross_entropy(head(shown), given[rows])
                return total + rate * loss(states, given[rows]) if rate else total

            weights = [*body.parameters(), *head.parameters()]
            minimise(value, weights, FIT, steps=steps, seed=seed)
            with torch.no_grad():
                states = body(x[FIT:])

            def accuracy(width: int = WIDTH) -> float:
                said = head(NestedDropout.truncated(width)(states)).argmax(1)
                return float((said == label[FIT:]).double().mean())

            return accuracy

        plain, nested = trained(noisy), trained(noisy, 20.0)
        rate = trained(noisy, rate=0.1)
        clean = [trained(label[:FIT]), trained(label[:FIT], 20.0)]
        near = torch.cdist(x[:FIT], x[:FIT])
        near.fill_diagonal_(torch.inf)
        graph = torch.zeros_like(near).scatter(1, near.topk(10, largest=False).indices, 1.0)
        spread = propagate(torch.eye(10)[noisy], torch.maximum(graph, graph.T), 0.8).argmax(1)
        given, after = (float((y == label[:FIT]).double().mean()) for y in (noisy, spread))
        return {
            "nested": nested(WIDTH) - plain(WIDTH),
            "narrow": nested(NARROW) - nested(WIDTH) + 0.02,
            "rate": rate(WIDTH) - plain(WIDTH),
            "spread": after - given,
            "clean": clean[1](WIDTH) - clean[0](WIDTH),
            "accuracy | plain": plain(WIDTH),
            "accuracy | nested": nested(WIDTH),
            "accuracy | nested, 16 units": nested(NARROW),
            "accuracy | rate reduction": rate(WIDTH),
            "right labels | given": given,
            "right labels | spread": after,
        }
