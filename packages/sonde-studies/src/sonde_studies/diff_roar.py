"""Test whether input gradients mark discriminative pixels, and more so in robust nets."""

from typing import final

import torch
from torch import Tensor, nn

from sonde.explain import DiffRoar, Objective, Ranked, Saliency
from sonde_studies._blocks import BlockDigits, block_digits, block_mlp, robust, trained
from sonde_studies.arms import note, part
from sonde_studies.study import Claim, Figures, Study, Tick

FIT, TOP, SIZE, STEPS = 1200, 0.1, 1.0, 60


@final
class DiffRoarStudy(Study):
    """Saliency of a net with one hidden layer, trained as usual or adversarially.

    Scores are for the predicted class. ``beyond masks`` is DiffROAR less that of nets that see only
    which pixels were kept.
    """

    name = "diff-roar"
    title = "do gradients point at the digit or at the pattern that says nothing?"
    paper = "shah2021diffroar"
    fidelity = (
        "official measure; the original's MNIST blocks are digits of 8 x 8 here, its nets one "
        "hidden layer; adversarial training by 7 steps within an L2 ball of 1"
    )
    data = "BlockDigits: a digit above or below a framed diagonal"
    claims = (
        Claim(
            "ordinary nets leak",
            "At least a third of an ordinary net's saliency lies in the block that says nothing.",
            "share",
            above=1 / 3,
        ),
        Claim(
            "ordinary, DiffROAR",
            "The pixels that an ordinary net's saliency ranks first say less than the last.",
            "0 less DiffROAR at a tenth of the pixels",
        ),
        Claim(
            "robust, DiffROAR",
            "Those that a robust net's saliency ranks first say more than the last.",
            "DiffROAR at a tenth of the pixels",
        ),
        Claim(
            "robust over ordinary, mass",
            "A robust net's saliency lies in the digit's block more than an ordinary one's, by a "
            "fifth.",
            "difference of shares; a robust net takes eight times the passes in as many steps",
            above=0.2,
            arms=("robust", "ordinary"),
        ),
        Claim(
            "robust over ordinary, DiffROAR",
            "A robust net's saliency has the higher DiffROAR at a tenth of the pixels.",
            "difference of DiffROAR; a robust net takes eight times the passes in as many steps",
            arms=("robust", "ordinary"),
        ),
    )
    null = Claim("null", "Random scores' DiffROAR at a tenth of the pixels.", "DiffROAR")

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train both nets, compute saliency, and retrain on the remaining pixels."""
        steps = 4 if tiny else STEPS
        every = block_digits(seed)
        fit, test = every.part(0, FIT), every.part(FIT, len(every))
        tick("training")
        inner = 2 if tiny else 7
        with part("ordinary"):
            nets = {"ordinary": trained(block_mlp(), fit.x, fit.label, seed, steps)}
            note(passes=steps)
        with part("robust"):
            nets["robust"] = robust(fit.x, fit.label, seed, SIZE, steps, inner)
            note(passes=(1 + inner) * steps)
        figures: dict[str, float] = {}

        def again(x: Tensor, label: Tensor, draw: int) -> nn.Module:
            return trained(block_mlp(), x, label, draw, steps)

        measure = DiffRoar(keep=TOP, n_seeds=1, seed=seed)
        for name, net in nets.items():
            tick(f"training again, {name}")
            parts = [_ranked(net, part) for part in (fit, test)]
            found = measure.judge(again, *parts)
            scores, signal = parts[1].scores, test.signal
            with torch.no_grad():
                right = net(test.x).argmax(1) == test.label
            figures |= {
                f"accuracy | {name}": float(right.double().mean()),
                f"mass | {name}": float((scores * signal).sum() / scores.sum()),
                f"top pixels | {name}": float(signal[parts[1].top(TOP, seed)].double().mean()),
                f"DiffROAR | {name}": float(found),
                f"beyond masks | {name}": found.beyond_control,
            }
        draw = torch.Generator().manual_seed(seed)
        random = [
            Ranked(p.x, p.label, torch.rand(p.signal.shape, generator=draw)) for p in (fit, test)
        ]
        return {
            "ordinary nets leak": 1.0 - figures["mass | ordinary"],
            "ordinary, DiffROAR": -figures["DiffROAR | ordinary"],
            "robust, DiffROAR": figures["DiffROAR | robust"],
            "robust over ordinary, mass": figures["mass | robust"] - figures["mass | ordinary"],
            "robust over ordinary, DiffROAR": (
                figures["DiffROAR | robust"] - figures["DiffROAR | ordinary"]
            ),
            "null": float(measure.judge(again, *random)),
            **figures,
        }


def _ranked(net: nn.Module, part: BlockDigits) -> Ranked:
    found = Saliency().explain(net, part.x, objective=Objective())
    return Ranked(part.x, part.label, found.by_place)
