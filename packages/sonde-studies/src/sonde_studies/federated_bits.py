"""Clients with about one class each send compressed updates: accuracy per megabyte of uplink.

A simulated federation of ten clients on one machine; nothing is sent over a network.
"""

from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from sonde import Model
from sonde.report import Answer
from sonde_studies._recipe_data import mlp, shuffled_digits
from sonde_studies._sparse_clients import train_sparse_clients
from sonde_studies.arms import note, part
from sonde_studies.recipes.federated_bits import ARMS, CONTROL, PLAIN, federated_bits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy, drawn

ROWS, CLIENTS, ROUNDS, TINY, FEW = 1_430, 10, 60, 2, 200
SPARSE_CLIENTS = 5
SCORES: tuple[Literal["congruity", "gradient"], ...] = ("congruity", "gradient")
SEVEN = f"{CONTROL}, 7 bits"


@final
class FederatedBitsStudy(Study):
    """Averaging, control variates, three codecs of updates, and sparse clients by two scores."""

    name = "federated-bits"
    title = "do control variates and codecs reach plain averaging at a fraction of the bits?"
    paper = "huang2024scallion"
    fidelity = (
        "what is sent is the change of a client's variate; all take part in every round; the "
        "direction of sparse clients is a mean of full gradients, whose bytes are not counted"
    )
    data = (
        "digits: ten clients of about one class each, 1,001 rows in all, 429 to judge; five sparse "
        "ones"
    )
    claims = (
        Claim("control", "Control variates help where clients see different classes.",
              "accuracy after all rounds, with them less without",
              arms=("control variates", "plain averaging")),
        Claim("bits", "With 7 bits a number, under a quarter of the bytes, they still reach plain "
              "averaging, to two points.",
              "accuracy of control variates with 7 bits less plain averaging, and 0.02",
              arms=("control variates, 7 bits", "plain averaging")),
        Claim("congruity", "Sparse clients of two classes learn more if masks follow all clients.",
              "accuracy at density 0.1, masks by congruity less by the client's own gradient",
              arms=("congruity", "gradient")),
        Claim("uneven", "Masks that follow all clients gain more where classes differ.",
              "gain of accuracy by congruity, clients of two classes each less clients alike",
              arms=("congruity", "gradient")),
    )  # fmt: skip
    null = Claim("alike", "Where clients hold the same classes, control variates gain nothing.",
                 "accuracy after all rounds, with them less without",
                 arms=("control variates", "plain averaging"))  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Run the recipe for clients with two classes each, and for rows dealt at random."""
        x, label = shuffled_digits(seed)
        x, label = (v[: FEW if tiny else ROWS] for v in (x, label))
        place = label.argsort(stable=True).argsort()
        lot = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        net, found = Model(drawn(lambda: mlp(64, 32), seed).eval()), dict[str, Answer]()
        sparse = dict[str, dict[str, float]]()
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
            tick(f"{name}, sparse")
            sparse[name] = _sparse(x, label, order, seed, TINY if tiny else ROUNDS)
        gain = {name: row["congruity"] - row["gradient"] for name, row in sparse.items()}
        score, other = ({str(r["arm"]): r for r in a.rows} for a in found.values())
        for arm in ARMS:
            with part(arm):
                note(bytes=1e6 * float(score[arm]["megabytes up"]))
        return {
            "control": score[CONTROL]["accuracy"] - score[PLAIN]["accuracy"],
            "bits": score[SEVEN]["accuracy"] - score[PLAIN]["accuracy"] + 0.02,
            "congruity": gain["two classes each"],
            "uneven": gain["two classes each"] - gain["alike"],
            "alike": other[CONTROL]["accuracy"] - other[PLAIN]["accuracy"],
            **{f"{arm} | {k}": score[arm][k] for arm in ARMS for k in ("accuracy", "megabytes up")},
            **{
                f"accuracy, sparse, {name} | {score}": value
                for name, row in sparse.items()
                for score, value in row.items()
            },
        }


def _sparse(x: Tensor, label: Tensor, order: Tensor, seed: int, rounds: int) -> dict[str, float]:
    """Return the accuracy of a sparse net by the score of its masks."""
    x = (x - x.mean()) / x.std()
    fit = torch.arange(len(x)) < 0.7 * len(x)
    client = (order * SPARSE_CLIENTS) // len(x)
    whose = [fit & (client == k) for k in range(SPARSE_CLIENTS)]
    start = drawn(lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), seed)
    found = dict[str, float]()
    for score in SCORES:
        clients = [(x[rows], label[rows]) for rows in whose]
        with part(score):
            net = train_sparse_clients(start, clients, score, rounds=rounds, seed=seed)
        found[score] = accuracy(net, x[~fit], label[~fit])
    return found
