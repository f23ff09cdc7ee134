"""Encoders and a joining net, trained at once or in turn, with equal numbers of steps.

The halves of a digit are two fields with an encoder each; a translator joins them.
"""

from typing import final

import torch
from torch import Tensor, nn

from sonde import Model
from sonde_studies._recipe_data import items_of, shuffled_digits
from sonde_studies.recipes.alternating_fields import JOINT, RANDOM, TURNS, alternating_fields
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn

ROWS, TINY, EPOCHS = 1_000, 120, 24
GROUPS = ("encoders.*", "translator.*")


@final
class AlternatingFieldsStudy(Study):
    """Two encoders and a translator, with three orders of training."""

    name = "alternating-fields"
    title = "is it better to train encoders and what joins them in turn?"
    fidelity = "digits in halves; the paper forecasts fields of weather over many epochs"
    data = "digits: 600 to train on, 400 to judge"
    claims = (
        Claim("turns", "In turn is better than all at once, at equal steps.",
              "accuracy after 24 epochs, in turn less at once"),
        Claim("groups", "The groups of the architecture are better than random groups.",
              "accuracy after 24 epochs, in turn less random groups in turn"),
        Claim("equal moves", "It is better than half as many epochs of all at once, in which each "
              "parameter moves as often.",
              "accuracy, in turn after 24 epochs less at once after 12"),
    )  # fmt: skip
    null = Claim("seeds", "Two orders of the rows do not differ.",
                 "accuracy at once after 24 epochs, one order less another")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Run the recipe, and again with the groups in another order of the rows."""
        x, label = shuffled_digits(seed)
        n, epochs = (TINY, 4) if tiny else (ROWS, EPOCHS)
        items, net = items_of(x[:n], label[:n]), Model(drawn(_Net, seed).eval())
        found = []
        for order in (2 * seed, 2 * seed + 1):
            tick(f"order {order}")
            answer = alternating_fields(
                net, items, groups=GROUPS, epochs=epochs, rate=3e-3, seed=order, progress=False
            )
            found.append({(r["arm"], r["epochs"]): float(r["accuracy"]) for r in answer.rows})
        first, second = found
        return {
            "turns": first[TURNS, epochs] - first[JOINT, epochs],
            "groups": first[TURNS, epochs] - first[RANDOM, epochs],
            "equal moves": first[TURNS, epochs] - first[JOINT, epochs // len(GROUPS)],
            "seeds": first[JOINT, epochs] - second[JOINT, epochs],
            **{f"{arm} | {n} epochs": v for (arm, n), v in first.items() if n % 6 == 0},
        }


class _Net(nn.Module):
    """An encoder for each half of a digit, a translator of both, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
            for _ in range(2)
        )
        self.translator = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        parts = [encoder(h) for encoder, h in zip(self.encoders, x.chunk(2, 1), strict=True)]
        return self.translator(torch.cat(parts, 1))
