"""Control variates with a biased code, with some clients in each round, and in their older form.

A simulated federation of ten clients of about one class each; nothing is sent over a network.
"""

from typing import Any, final

import numpy as np
import torch

from sonde import Model
from sonde.data import open_inputs
from sonde_studies._recipe_data import mlp, shuffled_digits
from sonde_studies.arms import note_for
from sonde_studies.parts.federation import Federation
from sonde_studies.recipes.federated_bits import CODECS, CONTROL, INERTIA, PLAIN
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn

ROWS, FEW, CLIENTS, ROUNDS, TINY, SHARE = 1_430, 200, 10, 60, 2, 0.4
RATE, LOCAL_STEPS, BATCH = 0.1, 5, 32
SEVEN, LARGEST = (CODECS[f"{CONTROL}, {code}"] for code in ("7 bits", "top 5 %"))
ARMS: dict[str, dict[str, Any]] = {
    PLAIN: {"controls": False},
    "largest 5 %": {"codec": LARGEST},
    "largest 5 %, running means": {"codec": LARGEST, "inertia": INERTIA},
    "7 bits": {"codec": SEVEN},
    "two streams, 7 bits": {"codec": SEVEN, "two_streams": True},
    f"{PLAIN}, some": {"controls": False, "take_part": SHARE},
    f"{CONTROL}, some": {"take_part": SHARE},
    "7 bits, some": {"take_part": SHARE, "codec": SEVEN},
}
ALIKE = (f"{PLAIN}, some", f"{CONTROL}, some")


@final
class SomeClientsStudy(Study):
    """Federations with control variates that hear a part of the clients, or of the bits."""

    name = "some-clients"
    title = "do control variates bear biased codes, absent clients and half of the uplink?"
    paper = "huang2024scallion"
    fidelity = "no factor shrinks what clients send; a running mean starts at the first gradient"
    data = "digits: ten clients of about one class each, 1,001 rows in all, 429 to judge"
    claims = (
        Claim("biased", "With the largest 5 % of each change alone, a biased code and a sixteenth "
              "of the bytes, control variates still reach plain averaging, to two points.",
              "accuracy of control variates with the largest 5 % less plain averaging, and 0.02",
              arms=("largest 5 %", PLAIN)),
        Claim("means", "With this code they do better if each client sends a running mean of its "
              "gradients.",
              "accuracy with the largest 5 %, running means less gradients of the round",
              arms=("largest 5 %, running means", "largest 5 %")),
        Claim("halves", "With half of the bytes they are as right, to two points, as in the older "
              "form, which sends the change of the weights as well.",
              "accuracy with 7 bits a number, one stream less two, and 0.02",
              arms=("7 bits", "two streams, 7 bits")),
        Claim("some", "With four of ten clients in each round they still help.",
              "accuracy after all rounds, with them less without", arms=(ALIKE[1], ALIKE[0])),
        Claim("some bits", "So they do with 7 bits a number and under a quarter of the bytes.",
              "accuracy after all rounds, with them and 7 bits less plain averaging",
              arms=("7 bits, some", ALIKE[0])),
    )  # fmt: skip
    null = Claim("alike", "Where clients hold the same classes, they gain nothing with four of ten "
                 "clients in each round.",
                 "accuracy after all rounds, with them less without",
                 arms=(ALIKE[1], ALIKE[0]))  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train all federations of unlike clients, and two of clients that are alike."""
        x, label = shuffled_digits(seed)
        x, label = (v[: FEW if tiny else ROWS] for v in (x, label))
        net = Model(drawn(lambda: mlp(64, 32), seed).eval())
        lot = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        unlike = federation(net, x, label, label.argsort(stable=True).argsort(), seed)
        alike = federation(net, x, label, lot, seed)
        right, other = dict[str, float](), dict[str, float]()
        rounds = TINY if tiny else ROUNDS
        for arm, how in ARMS.items():
            tick(arm)
            last = unlike.trained(rounds, **how)[0][-1]
            right[arm] = last["accuracy"]
            note_for(arm, bytes=1e6 * last["megabytes"])
        for arm in ALIKE:
            tick("alike")
            other[arm] = alike.trained(rounds, **ARMS[arm])[0][-1]["accuracy"]
        return {
            "biased": right["largest 5 %"] - right[PLAIN] + 0.02,
            "means": right["largest 5 %, running means"] - right["largest 5 %"],
            "halves": right["7 bits"] - right["two streams, 7 bits"] + 0.02,
            "some": right[ALIKE[1]] - right[ALIKE[0]],
            "some bits": right["7 bits, some"] - right[ALIKE[0]],
            "alike": other[ALIKE[1]] - other[ALIKE[0]],
            **{f"accuracy | {arm}": v for arm, v in right.items()},
            **{f"accuracy, alike | {arm}": v for arm, v in other.items()},
        }


def federation(
    net: Model, x: torch.Tensor, label: torch.Tensor, order: torch.Tensor, seed: int
) -> Federation:
    """Return ten clients that hold rows by their place in an order, and a server.

    Parameters
    ----------
    net : Model
    x, label : Tensor
        All rows.
    order : Tensor
        Place of each row: the first tenth is the first client's.
    seed : int
    """
    owners = [int(place) * CLIENTS // len(x) for place in order]
    rows = [
        {"x": v, "label": int(c), "client": k} for v, c, k in zip(x, label, owners, strict=True)
    ]
    inputs = open_inputs(net, rows, ignore_columns="client", batch_size=BATCH)
    return Federation(net, inputs, owners, np.arange(len(rows)), RATE, LOCAL_STEPS, seed)
