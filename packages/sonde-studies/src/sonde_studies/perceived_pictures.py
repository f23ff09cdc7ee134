"""Classifiers of the pictures that a net sees, where few digits are labelled.

An autoencoder of the same few digits is the perceptual layer. Its pictures are taken as they are,
or assembled from random starts.
"""

from collections.abc import Callable
from functools import partial
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from sonde.train import InputDecoder
from sonde_studies._recipe_data import mlp, shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy, drawn, minimise

FIT, STEPS, TINY, CODE, HIDDEN = 100, 400, 4, 16, 48
ROUNDS = 2
ARMS = {"digits": (0, 0.0), "noisy": (0, 0.1), "once": (1, 0.0), "assembled": (4, 0.1)}
"""Random starts of each picture, and their noise; without a start the digit is no picture."""
See = Callable[[Tensor], Tensor]


@final
class PerceivedPicturesStudy(Study):
    """A classifier of a hundred digits, of pictures of them, and of assembled random pictures."""

    name = "perceived-pictures"
    title = "does a classifier gain by reading what a net sees of its input?"
    paper = "semiotics"
    fidelity = "reconstructed: noise starts the loop; digits of 8 x 8 pixels in place of MNIST"
    data = "digits: 100 to train autoencoder and classifier on, 1,697 to judge"
    claims = (
        Claim("perceived", "A classifier of assembled random pictures beats one of the digits, "
              "whose arm has fewer updates and parameters: it needs no autoencoder.",
              "accuracy, assembled less digits", arms=("assembled", "digits")),
        Claim("random", "Assembled from random starts, the pictures teach more than seen once.",
              "accuracy, assembled less once", arms=("assembled", "once")),
        Claim("not noise", "They teach more than noisy digits do, without an autoencoder's updates "
              "and parameters.", "accuracy, assembled less noisy", arms=("assembled", "noisy")),
    )  # fmt: skip
    null = Claim("by lot", "With labels by lot the classifier of assembled pictures is right by "
                 "chance.", "accuracy", above=0.1)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train an autoencoder, then a classifier of each kind of picture."""
        x, label = shuffled_digits(seed)
        steps = TINY if tiny else STEPS
        draw = torch.Generator().manual_seed(seed)
        found = dict[str, float]()
        for name, (draws, noise) in ARMS.items():
            tick(name)
            if draws:
                see = _perceptual_layer(x[:FIT], seed, steps, draws, noise, draw)
            else:
                see = partial(_noisy, noise=noise, draw=draw)
            found[name] = _judged(see, x, label, seed, steps)
            if name == "assembled":
                tick("by lot")
                lot = torch.randperm(len(label), generator=draw)
                found["by lot"] = _judged(see, x, label[lot], seed, steps)
        return {
            "perceived": found["assembled"] - found["digits"],
            "random": found["assembled"] - found["once"],
            "not noise": found["assembled"] - found["noisy"],
            "by lot": found["by lot"],
            **{f"accuracy | {name}": value for name, value in found.items()},
        }


def _noisy(x: Tensor, noise: float, draw: torch.Generator) -> Tensor:
    """Return digits with noise, of the size that starts the loop."""
    return x + noise * torch.randn(x.shape, generator=draw)


def _perceptual_layer(
    x: Tensor, seed: int, steps: int, draws: int, noise: float, draw: torch.Generator
) -> See:
    """Return the pictures that an autoencoder of the training digits sees."""

    def mapped(*widths: int) -> nn.Sequential:
        first, inner, last = widths
        return nn.Sequential(nn.Linear(first, inner), nn.ReLU(), nn.Linear(inner, last))

    def decoder() -> InputDecoder:
        seen = InputDecoder(64, (HIDDEN,))
        seen.decode(torch.zeros(1, CODE))  # sets the widths of its lazy layers
        return seen

    encode = drawn(lambda: mapped(64, HIDDEN, CODE), seed)
    back = drawn(lambda: mapped(CODE, HIDDEN, 64), seed + 1)
    seen = drawn(decoder, seed + 2)

    def loss(rows: Tensor) -> Tensor:
        codes = encode(x[rows] + 0.1 * torch.randn(len(rows), 64))
        return mse_loss(back(codes), x[rows]) + seen(codes, x[rows])

    both = [p for net in (encode, back, seen) for p in net.parameters()]
    minimise(loss, both, len(x), steps=steps, seed=seed)
    return lambda rows: seen.perceive(encode, rows, ROUNDS, draws, noise, draw)


def _judged(see: See, x: Tensor, label: Tensor, seed: int, steps: int) -> float:
    """Return a classifier's accuracy on fresh digits, trained and asked on what is seen."""
    net = drawn(lambda: mlp(64), seed)

    def loss(rows: Tensor) -> Tensor:
        return cross_entropy(net(see(x[rows])), label[rows])

    minimise(loss, net.parameters(), FIT, steps=steps, seed=seed)
    return accuracy(net, see(x[FIT:]), label[FIT:])
