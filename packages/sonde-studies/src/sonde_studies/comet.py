"""Test whether reading the masked-out part makes a mask complete."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.explain import Comet, CometResult
from sonde_studies._blocks import BlockDigits, block_digits, block_mlp, trained
from sonde_studies.arms import note_for
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy, drawn, minimise

FIT, PATCH, AREA, STEPS = 1200, 4, 0.5, 400


@final
class CometStudy(Study):
    """Digits in one of two blocks; the other block is equal for all classes."""

    name = "comet"
    title = "does a mask that must leave nothing behind find all that tells the class?"
    paper = "zhang2024comet"
    fidelity = (
        "the published losses; weights of area and of completeness, rates and nets are ours; "
        "nothing was chosen on held-out pictures"
    )
    data = "digits above or below a framed diagonal, at random; squares of 4 x 4 pixels"
    claims = (
        Claim(
            "rest tells less",
            "What is left out tells a fresh net the class less than without the net that reads it.",
            "accuracy of a net trained on what is left out, without that net less with it",
            arms=("weight 4", "weight 0"),
        ),
        Claim(
            "in the block",
            "More than nine tenths of the mask lie in the block of the digit.",
            "share of the mask",
            above=0.9,
        ),
        Claim(
            "as right",
            "Answers from what is kept, by a net beside a net of its own that chooses, are less "
            "than .03 worse than those of a net that sees all, has fewer parameters and takes as "
            "many steps.",
            "difference of accuracies",
            above=-0.03,
            arms=("kept", "plain"),
        ),
    )
    null = Claim(
        "by lot",
        "A fresh net, as those that read what is left out, tells no labels by lot.",
        "accuracy on whole pictures that it did not see, less 0.1",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train with and without completeness."""
        data = block_digits(seed, 300 if tiny else None)
        fit, held = (data.part(0, 200), data.part(200, 300)) if tiny else _halves(data)

        def masked(weight: float) -> CometResult:
            tick(f"weight {weight:g}")
            method = Comet(
                area=AREA,
                patch=PATCH,
                weight=weight,
                steps=4 if tiny else STEPS,
                seed=2 * seed,
            )
            return method.fit(block_mlp, fit.x, fit.label, (held.x, held.label))

        whole, alone = masked(4.0), masked(0.0)
        tick("plain")
        right = _of_all(fit, held, seed, 4 if tiny else STEPS)
        both = nn.ModuleList([whole.selector, whole.predictor])
        weights = sum(p.numel() for p in both.parameters())
        note_for("kept", updates=4 if tiny else STEPS, rows=len(fit.x), parameters=weights)
        tick("fresh nets on what is left out")
        arms = {"with the third net": whole, "without": alone}
        rest = {arm: _told(found, fit, held, seed, tiny) for arm, found in arms.items()}
        return {
            "rest tells less": rest["without"] - rest["with the third net"],
            "in the block": _inside(whole, held),
            "as right": float(whole) - right,
            "by lot": by_lot(fit.x, held.x, seed, 5 if tiny else 100),
            "share of the mask in the block | with the third net": _inside(whole, held),
            "share of the mask in the block | without": _inside(alone, held),
            **{f"accuracy of a fresh net on what is left out | {a}": v for a, v in rest.items()},
            "accuracy of the third net on what is left out | with the third net": whole.complement,
            "accuracy of the third net on what is left out | without": alone.complement,
            "accuracy on what is kept": float(whole),
        }


def _of_all(fit: BlockDigits, held: BlockDigits, seed: int, steps: int) -> float:
    """Return the accuracy of a net that sees all, in steps like those of the masked nets."""
    net, how = drawn(block_mlp, seed), Comet()
    minimise(lambda rows: cross_entropy(net(fit.x[rows]), fit.label[rows]), net.parameters(),
             len(fit.x), steps=steps, seed=seed, rate=how.rate, batch=how.batch)  # fmt: skip
    return accuracy(net.eval(), held.x, held.label)


def by_lot(x: Tensor, held: Tensor, seed: int, steps: int) -> float:
    """Return the accuracy of a fresh net on labels by lot, less that of chance."""
    label, asked = (labels_by_lot(rows, 10, seed) for rows in (x, held))
    net = trained(block_mlp(), x, label, seed, steps)
    return accuracy(net.eval(), held, asked) - 0.1


def _halves(data: BlockDigits) -> tuple[BlockDigits, BlockDigits]:
    return data.part(0, FIT), data.part(FIT, len(data))


def _told(found: CometResult, fit: BlockDigits, held: BlockDigits, seed: int, tiny: bool) -> float:
    """Return the accuracy of a fresh net that is trained on what the mask leaves out."""
    with torch.no_grad():
        rows, fresh = ((1.0 - found.mask(part.x)[:, None]) * part.x for part in (fit, held))
    net = trained(block_mlp(), rows, fit.label, seed, 5 if tiny else 100)
    return accuracy(net.eval(), fresh, held.label)


def _inside(found: CometResult, held: BlockDigits) -> float:
    """Return the fraction of the mask inside the block of the digit."""
    mask = found.mask(held.x)
    return float((mask * held.signal).sum() / mask.sum())
