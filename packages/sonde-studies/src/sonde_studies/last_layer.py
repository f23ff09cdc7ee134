"""Test whether nets whose last layer compresses its input more generalise better."""

from typing import final

import numpy as np
import torch

from sonde.measure import information_plane
from sonde_studies._layers import layers_of, plain_net, split, trained
from sonde_studies._separation import rank_correlation
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy

WIDTHS, RATE, DECAYS, COPIES = (16, 10, 6, 4), 3e-3, (0.0, 0.03, 0.3), 4
TRAIN, STEPS, AT = 300, 800, (0, 25, 50, 100, 200, 400)


@final
class LastLayerStudy(Study):
    """Twelve ReLU nets on digits with several weight decays; peak and final bits of each layer.

    One half of the test digits chooses the checkpoint of the peak, the other half judges.
    """

    name = "last-layer"
    title = "does a net whose last layer forgets more answer fresh rows better?"
    paper = "chelombiev2019adaptive"
    fidelity = "adaptive bins as published; narrow nets, so that bins are fewer than rows"
    data = "scikit-learn's digits: 300 for training, half of the others for the peak, half to judge"
    claims = (
        Claim(
            "last",
            "Nets whose last layer forgets more are right more often on fresh digits.",
            "rank correlation over twelve nets of three weight decays",
        ),
        Claim(
            "last over first",
            "The last layer says so better than the first.",
            "difference of rank correlations",
            arms=("last layer", "first layer"),
        ),
    )
    null = Claim(
        "by lot",
        "Accuracies that belong to other nets, drawn by lot.",
        "rank correlation of one draw",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the nets and compare each layer's compression with the accuracy."""
        d = split(seed, TRAIN)
        fresh = d.x_test[:200] if tiny else d.x_test
        lost: list[list[float]] = []
        right: list[float] = []
        decays = [decay for decay in DECAYS for _ in range(COPIES)]
        for number, decay in enumerate(decays):
            tick(f"net {number + 1} of {len(decays)}")
            own = 100 * seed + number
            net, steps = plain_net(own, WIDTHS), 60 if tiny else STEPS
            nets = list(trained(net, d.x, d.label, steps, own, RATE, decay, AT))
            chosen, bits = (
                torch.tensor([[_bits(h) for h in layers_of(each, fresh[i::2])] for each in nets])
                for i in (0, 1)
            )
            most = bits.gather(0, chosen.argmax(0, keepdim=True))[0]
            lost.append((most - bits[-1]).tolist())
            right.append(accuracy(nets[-1], d.x_test[1::2], d.label_test[1::2]))
        for layer in ("first layer", "last layer"):
            note_for(layer, rows=len(fresh))
        of_layer = [rank_correlation(one, right) for one in zip(*lost, strict=True)]
        draw = np.random.default_rng(seed)
        last = [one[-1] for one in lost]
        return {
            "last": of_layer[-1],
            "last over first": of_layer[-1] - of_layer[0],
            "by lot": rank_correlation(last, draw.permutation(right)),
            "accuracy, least": min(right),
            "accuracy, largest": max(right),
            "bits forgotten by the last layer, mean": float(np.mean(last)),
            **{f"rank correlation | layer {i + 1}": value for i, value in enumerate(of_layer)},
        }


def _bits(x: torch.Tensor) -> float:
    """Return the bits of a layer; 0 if all rows are equal."""
    moving = bool((x != x[:1]).any())
    return float(information_plane(x, estimator="adaptive_bins").bits()) if moving else 0.0
