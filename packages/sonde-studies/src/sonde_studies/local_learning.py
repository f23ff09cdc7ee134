"""Local learning by a forward and a feedback net that are matched at every level.

Digits, a perceptron of three levels, the same steps for every arm.
"""

from typing import final

import torch
from torch import Tensor, nn

from sonde.measure import cka
from sonde.train import CounterCurrent
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, learn_labels, minimise

FIT, STEPS, TINY, WIDTH = 1_000, 500, 10, 96


@final
class LocalLearningStudy(Study):
    """A net by backpropagation, by local learning, and with untrained lower levels."""

    name = "local-learning"
    title = "does a net learn without a backward pass through its levels?"
    paper = "countercurrent2024"
    fidelity = "reconstructed: products of rows of length 1, cross entropy at the top, Adam"
    data = "digits: 1,000 to train on, 797 to judge"
    claims = (
        Claim("levels", "Local losses train the lower levels.",
              "accuracy less that with lower levels as drawn, where a 28th of the parameters is "
              "trained",
              arms=("local", "drawn")),
        Claim("gap", "Local losses come within two points of backpropagation.",
              "accuracy less that of backpropagation, and 0.02; local heads add three fifths of "
              "the parameters",
              arms=("local", "backpropagation")),
        Claim("alike", "The states of the second level resemble those of backpropagation more than "
              "drawn ones do.",
              "CKA with backpropagation, local less drawn, where a 28th of the parameters is "
              "trained",
              arms=("local", "drawn")),
    )  # fmt: skip
    null = Claim("shuffled", "With shuffled labels nothing is learned.",
                 "accuracy less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm."""
        x, label = shuffled_digits(seed)
        steps = TINY if tiny else STEPS
        mixed = label[torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))]
        found, states = dict[str, float](), dict[str, Tensor]()
        for arm in ("backpropagation", "local", "drawn", "shuffled"):
            tick(arm)
            truth = mixed if arm == "shuffled" else label
            parts = drawn(_parts, seed)
            _train(arm, parts, x, truth, seed, steps)
            with torch.no_grad():
                states[arm] = nn.Sequential(*parts[:2])(x[FIT:])
                told = nn.Sequential(*parts)(x[FIT:]).argmax(1)
            found[arm] = float((told == truth[FIT:]).double().mean())
        near = {
            arm: float(cka(states[arm], states["backpropagation"]).value)
            for arm in ("local", "drawn")
        }
        return {
            "levels": found["local"] - found["drawn"],
            "gap": found["local"] - found["backpropagation"] + 0.02,
            "alike": near["local"] - near["drawn"],
            "shuffled": found["shuffled"] - 0.1,
            **{f"accuracy | {arm}": v for arm, v in found.items()},
            **{f"CKA | {arm}": v for arm, v in near.items()},
        }


def _parts() -> nn.ModuleList:
    inner = [nn.Sequential(nn.Linear(a, WIDTH), nn.ELU()) for a in (64, WIDTH)]
    return nn.ModuleList([*inner, nn.Linear(WIDTH, 10)])


def _train(arm: str, parts: nn.ModuleList, x: Tensor, label: Tensor, seed: int, steps: int) -> None:
    if arm in ("local", "shuffled"):
        local = CounterCurrent(list(parts), [WIDTH, WIDTH], 10, seed=seed)
        minimise(
            lambda rows: local(x[rows], label[rows]), local.parameters(), FIT, steps=steps,
            seed=seed,
        )  # fmt: skip
        return
    part = parts[-1] if arm == "drawn" else None
    learn_labels(nn.Sequential(*parts), x[:FIT], label[:FIT], steps=steps, seed=seed, part=part)
