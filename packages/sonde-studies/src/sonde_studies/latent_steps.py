"""The tasks that latent computation steps before the answer make possible.

Eight cells point to one another; the question names a cell, and the answer is the cell two arrows
on. A wide decoder of one block learns that in one forward, a narrow decoder does not.
"""

from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sonde.layers import LatentLoop
from sonde_studies._arrows import CELLS, FIT, PAUSE, arrows, decoder
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

LEARN, TINY = 1500, 3


@final
class LatentStepsStudy(Study):
    """One latent step, replaced or gated, against no step and against a pause token."""

    name = "latent-steps"
    title = "does a step on its own states let a narrow decoder follow one arrow more?"
    paper = "yue2025hrpo"
    fidelity = "a narrow decoder of one block, trained on answers alone; no rewards"
    data = "simulated: eight cells with an arrow each"
    claims = (
        Claim("replace", "With its state fed back a narrow decoder follows two arrows more often.",
              "accuracy, one step less none",
              arms=("replace", "none")),
        Claim("pause", "It follows them more often than with a pause token.",
              "accuracy, fed-back state less pause",
              arms=("replace", "pause")),
        Claim("gate", "A state among the embeddings, gated, does as well as the plain state.",
              "0.05 less accuracy of the plain state over the gated one, whose gate adds a tenth "
              "of the parameters",
              arms=("gate", "replace")),
    )  # fmt: skip
    null = Claim("one", "Where the answer is one arrow on, the step adds nothing.",
                 "accuracy on one arrow, one step less none")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train in each way on two arrows, and in two ways on one arrow."""
        found = dict[str, float]()
        arms: dict[str, dict[str, Any]] = {
            "none": {"n_steps": 0},
            "pause": {"n_steps": 0},
            "replace": {"n_steps": 1},
            "gate": {"n_steps": 1, "mix": "gate", "feedback": "expected_embedding"},
        }
        for name, given in arms.items():
            tick(name)
            found[name] = _accuracy(given, 2, seed, tiny, pause=name == "pause")
        tick("one arrow")
        one = {name: _accuracy(arms[name], 1, seed, tiny) for name in ("none", "replace")}
        return {
            "replace": found["replace"] - found["none"],
            "pause": found["replace"] - found["pause"],
            "gate": 0.05 - (found["replace"] - found["gate"]),
            "one": one["replace"] - one["none"],
            **{f"accuracy, two arrows | {arm}": value for arm, value in found.items()},
            **{f"accuracy, one arrow | {arm}": value for arm, value in one.items()},
        }


def _accuracy(
    given: dict[str, Any], length: int, seed: int, tiny: bool, *, pause: bool = False
) -> float:
    ids, way = arrows(length, seed, pause)
    answer = way[:, -1]
    net = drawn(lambda: LatentLoop(decoder(), **given), seed)

    def told(rows: Tensor | slice) -> Tensor:
        return net(ids[rows])[:, CELLS * CELLS : PAUSE]

    minimise(
        lambda rows: cross_entropy(told(rows), answer[rows]), net.parameters(), FIT,
        steps=TINY if tiny else LEARN, seed=seed, rate=2e-3, batch=128,
    )  # fmt: skip
    with torch.no_grad():
        return float((told(slice(FIT, None)).argmax(1) == answer[FIT:]).double().mean())
