"""Clients with two classes each send compressed updates: accuracy per megabyte of uplink.

A simulated federation of ten clients on one machine; nothing is sent over a network.
"""

from typing import Any, final

import torch

from sonde import Model
from sonde.report import Answer
from sonde_studies._recipe_data import mlp, shuffled_digits
from sonde_studies.recipes.federated_bits import ARMS, CONTROL, PLAIN, federated_bits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn

ROWS, CLIENTS, ROUNDS, TINY, FEW = 1_430, 10, 60, 2, 200
SEVEN = f"{CONTROL}, 7 bits"


@final
class FederatedBitsStudy(Study):
    """Federated averaging, with control variates and with three codecs of the updates."""

    name = "federated-bits"
    title = "do control variates and codecs reach plain averaging at a fraction of the bits?"
    paper = "huang2024scallion"
    fidelity = "what is sent is the change of a client's variate; all take part in every round"
    data = "digits: ten clients of two classes each, 1,001 rows in all, 429 to judge"
    claims = (
        Claim("control", "Control variates help where clients see different classes.",
              "accuracy after all rounds, with them less without"),
        Claim("bits", "With updates of few bits they still reach plain averaging, to two points.",
              "accuracy of control variates with 7 bits less plain averaging, and 0.02"),
        Claim("cheaper", "At a quarter of the uplink or less.",
              "0.25 less bytes with 7 bits over bytes of plain averaging"),
    )  # fmt: skip
    null = Claim("alike", "Where clients hold the same classes, control variates gain nothing.",
                 "accuracy after all rounds, with them less without")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Run the recipe for clients with two classes each, and for rows dealt at random."""
        x, label = shuffled_digits(seed)
        x, label = (v[: FEW if tiny else ROWS] for v in (x, label))
        place = label.argsort(stable=True).argsort()
        lot = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        net, found = Model(drawn(lambda: mlp(64, 32), seed).eval()), dict[str, Answer]()
        for name, order in (("two classes each", place), ("alike", lot)):
            tick(name)
            client = (order * CLIENTS) // len(x)
            rows: list[dict[str, Any]] = [
                {"x": v, "label": int(c), "client": int(k)}
                for v, c, k in zip(x, label, client, strict=True)
            ]
            found[name] = federated_bits(
                net, rows, rounds=TINY if tiny else ROUNDS, seed=seed, progress=False
            )
        score, other = ({str(r["arm"]): r for r in a.rows} for a in found.values())
        return {
            "control": score[CONTROL]["accuracy"] - score[PLAIN]["accuracy"],
            "bits": score[SEVEN]["accuracy"] - score[PLAIN]["accuracy"] + 0.02,
            "cheaper": 0.25 - score[SEVEN]["of plain"],
            "alike": other[CONTROL]["accuracy"] - other[PLAIN]["accuracy"],
            **{f"{arm} | {k}": score[arm][k] for arm in ARMS for k in ("accuracy", "megabytes up")},
        }
