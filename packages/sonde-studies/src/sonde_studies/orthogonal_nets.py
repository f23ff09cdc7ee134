"""Near-isometric convolutions: effect of the penalty on accuracy and on input noise.

A small net on digits; the gain that the papers see in depth is not asked here.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.measure import isometry_error
from sonde.train import Orthogonal
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy, digit_images, drawn, minimise

FIT, STEPS, TINY, NOISE = 1_000, 400, 30, 0.3
STRENGTHS = (0.0, 0.01, 0.1, 1.0)


@final
class OrthogonalNetsStudy(Study):
    """Three convolutions, trained with four weights of the penalty."""

    name = "orthogonal-nets"
    title = "do near-isometric convolutions keep accuracy and bear more noise?"
    paper = "achour2022existence"
    fidelity = "the penalty as in the paper; a net without norms or skips"
    data = "digits, with normal noise of standard deviation 0.3 added in the test"
    claims = (
        Claim("isometry", "The penalty brings the layers near isometries.",
              "logarithm (base 10) of the largest distance of a singular value from 1, without the "
              "penalty over that with 1",
              arms=("strength 1", "strength 0")),
        Claim("accuracy", "A strength of 0.1 costs less than two points.",
              "accuracy less that without, and 0.02",
              arms=("strength 0.1", "strength 0")),
        Claim("noise", "It bears noise in the inputs better.",
              "accuracy under noise less that without the penalty, strength 0.1",
              arms=("strength 0.1", "strength 0")),
    )  # fmt: skip
    null = Claim("lots", "Labels by lot are not told of other rows.",
                 "accuracy under noise, strength 0.1, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train with each weight, and evaluate with and without noise."""
        x, label = digit_images(seed)
        found: dict[str, dict[str, float]] = {}
        steps = TINY if tiny else STEPS
        for strength in STRENGTHS:
            tick(f"strength {strength:g}")
            found[f"{strength:g}"] = _judged(x, label, strength, seed, steps)
        plain = found["0"]
        tick("labels by lot")
        return {
            "isometry": torch.tensor(plain["error"] / found["1"]["error"]).log10().item(),
            "accuracy": found["0.1"]["accuracy"] - plain["accuracy"] + 0.02,
            "noise": found["0.1"]["noisy"] - plain["noisy"],
            "lots": by_lot(x, seed, steps),
            **{f"{name} | {k}": v for name, row in found.items() for k, v in row.items()},
        }


def by_lot(x: Tensor, seed: int, steps: int) -> float:
    """Return the accuracy under noise on labels by lot, less that of chance."""
    return _judged(x, labels_by_lot(x, 10, seed), 0.1, seed, steps)["noisy"] - 0.1


def _judged(x: Tensor, label: Tensor, strength: float, seed: int, steps: int) -> dict[str, float]:
    def make() -> nn.Sequential:
        sizes = ((1, 12), (12, 12), (12, 12))
        layers = [m for a, b in sizes for m in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * 64, 10))

    net, penalty = drawn(make, seed), Orthogonal()
    kernels = [m.weight for m in net if isinstance(m, nn.Conv2d)]

    def loss(rows: Tensor) -> Tensor:
        error = torch.stack([penalty(k) for k in kernels]).sum()
        return cross_entropy(net(x[rows]), label[rows]) + strength * error

    minimise(loss, net.parameters(), FIT, steps=steps, seed=seed)
    held = x[FIT:]
    noisy = held + NOISE * torch.randn(held.shape, generator=torch.Generator().manual_seed(seed))
    right = [accuracy(net, v, label[FIT:]) for v in (held, noisy)]
    # not the penalty itself, which training lowers by design: singular values of the whole map
    error = max(float(isometry_error(k, side=8).value) for k in kernels)
    return {"accuracy": right[0], "noisy": right[1], "error": error}
