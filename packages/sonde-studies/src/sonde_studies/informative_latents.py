"""Autoencoders with different weights of the code's terms: collapse, information, probes.

The codes have 16 numbers and the pictures 64; published models are far larger.
"""

from typing import final

import torch
from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn

from sonde.train import Contrast, LatentTerms
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies._segmented_series import segment_figures
from sonde_studies.arms import note_for
from sonde_studies.parts.heads import head_accuracy, linear_head
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, CODE, SCALE, SERIES_STEPS = 1_000, 600, 30, 16, 32.0, 400
ARMS = {
    "vae": (1.0, 1.0, 0.0),
    "beta 4": (4.0, 4.0, 0.0),
    "machine": (-0.5, 0.5, 0.0),
    "contrast": (-0.5, 0.5, 1.0),
}
"""Weights of the posterior's and the prior's term, and of the contrast of two draws of a code."""


@final
class InformativeLatentsStudy(Study):
    """A variational autoencoder, one with weight 4, and the mutual information machine.

    The machine with a contrast of two draws from each row's code, too; and autoencoders of series.
    """

    name = "informative-latents"
    title = "which weights of the code's terms keep the code informative?"
    paper = "livne2025cmim"
    fidelity = (
        "the weights of the papers; the contrast of cMIM between two draws from each row's code; "
        "segments without the adversary of the paper on series"
    )
    data = (
        "digits: 1,000 to train on, 797 to judge; a code of 16 numbers. Simulated series of a slow "
        "and a fast part, two segments of 3 numbers"
    )
    claims = (
        Claim("collapse", "A weight of 4 leaves fewer units of the code in use.",
              "units in use, plain less weight 4",
              arms=("beta 4", "vae")),
        Claim("probe", "The machine's code says the digit better than the plain one's.",
              "accuracy of a linear probe, machine less plain",
              arms=("machine", "vae")),
        Claim("decoder", "The states of its decoder say it better than those of untrained ones "
              "that read the same code.",
              "accuracy of a linear probe on the hidden layer, trained less mean of two untrained",
              arms=("machine", "untrained decoders")),
        Claim("contrast", "With a contrast of two draws the machine's code says the digit better.",
              "accuracy of a linear probe, machine with the contrast less without",
              arms=("contrast", "machine")),
        Claim("contrast decoder", "So do the states of its decoder.",
              "accuracy of a linear probe on the hidden layer, with the contrast less without",
              arms=("contrast", "machine")),
        Claim("decoder, contrast", "These too say it better than those of untrained decoders.",
              "accuracy of a linear probe on the hidden layer, trained less mean of two untrained",
              arms=("contrast", "untrained decoders")),
        Claim("segments", "With a price on what segments share and none on information, a part of "
              "a series is read from one segment more than from the other.",
              "explained variance of one segment less another, mean of parts, priced less plain",
              arms=("series, segments", "series, plain")),
        Claim("parts", "The whole code reads both parts as well as the plain one's, to one point.",
              "explained variance, mean of parts, priced less plain, and 0.01",
              arms=("series, segments", "series, plain")),
    )  # fmt: skip
    null = Claim("lots", "The states of the machine's decoder say no label by lot of other rows.",
                 "accuracy of a linear probe on the hidden layer, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm; probe codes and decoder states."""
        x, label = shuffled_digits(seed)
        others = [drawn(_net, seed + n)["inner"] for n in (0, 500)]
        found, lots = dict[str, dict[str, float]](), 0.0
        for arm, weights in ARMS.items():
            tick(arm)
            net = _trained(x, weights, seed, TINY if tiny else STEPS)
            found[arm] = _judged(net, others, x, label)
            if arm == "machine":
                lots = by_lot(net, x, seed)
        note_for("untrained decoders", updates=0)
        tick("series")
        series = segment_figures(seed, TINY if tiny else SERIES_STEPS)
        priced, plain = series["segments"], series["plain"]
        machine, noisy = found["machine"], found["contrast"]
        return {
            "collapse": found["vae"]["in use"] - found["beta 4"]["in use"],
            "probe": machine["probe"] - found["vae"]["probe"],
            "decoder": machine["decoder probe"] - machine["untrained"],
            "contrast": noisy["probe"] - machine["probe"],
            "contrast decoder": noisy["decoder probe"] - machine["decoder probe"],
            "decoder, contrast": noisy["decoder probe"] - noisy["untrained"],
            "segments": priced["gap"] - plain["gap"],
            "parts": (priced["slow"] + priced["fast"] - plain["slow"] - plain["fast"]) / 2 + 0.01,
            "lots": lots,
            **{f"{arm} | {name}": v for arm, row in found.items() for name, v in row.items()},
            **{f"series, {arm} | {name}": v
               for arm, row in series.items() for name, v in row.items()},
        }  # fmt: skip


def _net() -> nn.ModuleDict:
    return nn.ModuleDict({
        "encoder": nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 2 * CODE)),
        "inner": nn.Sequential(nn.Linear(CODE, 128), nn.ReLU()),
        "outer": nn.Linear(128, 64),
    })  # fmt: skip


def _trained(
    x: Tensor, weights: tuple[float, float, float], seed: int, steps: int
) -> nn.ModuleDict:
    net = drawn(_net, seed)
    posterior, prior, weight = weights
    terms = LatentTerms(0.0, 0.0, 0.0, posterior=posterior, prior=prior, floor=-8.0)
    contrast = Contrast()

    def loss(rows: Tensor) -> Tensor:
        mean, log = net["encoder"](x[rows]).chunk(2, 1)
        log = log.clamp(min=-8.0)

        def draw() -> Tensor:
            return mean + (log / 2).exp() * torch.randn_like(mean)

        z = draw()
        made = net["outer"](net["inner"](z))
        missed = SCALE * (made - x[rows]).square().sum(1).mean() / 2
        value = missed + terms(mean, log, z)
        if weight:
            view = torch.arange(2).repeat_interleave(len(rows))
            value = value + weight * contrast(torch.cat([z, draw()]), view=view)
        return value

    minimise(loss, net.parameters(), FIT, steps=steps, seed=seed)
    return net.eval()


@torch.no_grad()
def _judged(
    net: nn.ModuleDict, others: list[nn.Module], x: Tensor, label: Tensor
) -> dict[str, float]:
    """Return accuracies of probes on a net's code, its decoder and two others' hidden layers."""
    mean, log = net["encoder"](x).chunk(2, 1)
    inner = net["inner"](mean)
    missed = (net["outer"](inner) - x)[FIT:].square().sum(1).mean()
    head, standard = LogisticRegression(max_iter=1_000), linear_head(1.0)
    trained, *made = (
        head_accuracy(standard, h, label, FIT) for h in (inner, *(o(mean) for o in others))
    )
    return {
        "in use": float((mean.var(0) > 0.01).sum()),
        "log variance": float(log.clamp(min=-8.0).mean()),
        "missed": float(missed),
        "probe": head_accuracy(head, mean, label, FIT),
        "decoder probe": trained,
        "untrained": sum(made) / 2,
    }


@torch.no_grad()
def by_lot(net: nn.ModuleDict, x: Tensor, seed: int) -> float:
    """Return the accuracy of a probe of the decoder on labels by lot, less that of chance."""
    states, lots = net["inner"](net["encoder"](x).chunk(2, 1)[0]), labels_by_lot(x, 10, seed)
    return head_accuracy(linear_head(1.0), states, lots, FIT) - 0.1
