"""What a layer norm does to the hidden states of a recurrent net over its steps.

Digits read in sixteen pieces of four pixels by nets with a layer norm, a norm of length alone, or
none.
"""

from typing import final

import torch
from torch import Tensor

from sonde_studies._recipe_data import shuffled_digits
from sonde_studies._recurrent_norms import FIT, Norm, RecurrentNet, learned_net, range_of
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy

STEPS, TINY = 600, 4
NORMS: tuple[Norm, ...] = ("none", "length", "layer")


@final
class SteadyStatesStudy(Study):
    """Recurrent nets with and without a norm, after equally many training steps."""

    name = "steady-states"
    title = "does a layer norm keep the states of a recurrent net steady?"
    paper = "ba2016layernorm"
    fidelity = "rectified units with a gain and a bias; sums are measured before the norm"
    data = "digits in sixteen pieces: 1,000 to train on, 797 to judge"
    claims = (
        Claim("steady", "The length of the summed inputs varies less than half as much over the "
              "steps as without a norm.",
              "deviation over steps of the logarithm of the length of the sums, half of that "
              "without a norm less that with one", arms=("none", "layer")),
        Claim("centred", "It varies less than with a norm of length alone.",
              "deviation over steps of the logarithm of the length of the sums, norm of length "
              "less layer norm", arms=("length", "layer")),
        Claim("fades", "Less of a small change of the first state is left at the last step than "
              "without a norm.",
              "logarithm of the relative change of the sums at the last step over that at the "
              "second, without a norm less with one", arms=("none", "layer")),
        Claim("twice", "Where a digit is read twice, which no net was trained on, it is right more "
              "often than without a norm.",
              "accuracy on digits read twice, with a norm less without", arms=("layer", "none")),
    )  # fmt: skip
    null = Claim("lots", "Labels by lot are not told of other rows.",
                 "accuracy with a layer norm, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train all three nets, and one on labels by lot."""
        x, label = shuffled_digits(seed)
        x = x.flatten(1)
        steps = TINY if tiny else STEPS
        ranges, right = dict[str, dict[str, float]](), dict[str, dict[str, float]]()
        for norm in NORMS:
            tick(norm)
            net = learned_net(norm, x, label, seed, steps)
            ranges[norm] = range_of(net, x[FIT:], seed)
            right[norm] = {
                "once": accuracy(net, x[FIT:], label[FIT:]),
                "twice": accuracy(net, x[FIT:].repeat(1, 2), label[FIT:]),
            }
        tick("labels by lot")
        spread, kept = ({n: r[what] for n, r in ranges.items()} for what in ("spread", "kept"))
        return {
            "steady": spread["none"] / 2 - spread["layer"],
            "centred": spread["length"] - spread["layer"],
            "fades": kept["none"] - kept["layer"],
            "twice": right["layer"]["twice"] - right["none"]["twice"],
            "lots": by_lot(x, seed, steps),
            **{f"{what} | {n}": v for n, row in ranges.items() for what, v in row.items()},
            **{f"right, {what} | {n}": v for n, row in right.items() for what, v in row.items()},
        }


def by_lot(x: Tensor, seed: int, steps: int) -> float:
    """Return the accuracy of a layer norm's net on labels by lot, less that of chance."""
    label = labels_by_lot(x, 10, seed)
    net: RecurrentNet = learned_net("layer", x, label, seed, steps)
    with torch.no_grad():
        return accuracy(net, x[FIT:], label[FIT:]) - 0.1
