"""Encoders and a joining net, trained at once or in turn, with equal numbers of steps.

The halves of a digit are two fields with an encoder each; a translator joins them.
"""

from typing import final

import torch
from torch import Tensor, nn

from sonde import Model
from sonde.layers import Attention
from sonde_studies._recipe_data import items_of, shuffled_digits
from sonde_studies.arms import Arms, arm, note_for
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.recipes.alternating_fields import JOINT, RANDOM, TURNS, alternating_fields
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn

ROWS, TINY, EPOCHS, LONGER, NARROW = 1_000, 120, 24, 2, 23
"""``LONGER``: translators of two kinds are compared after twice the epochs, where accuracy is flat;
``NARROW``: hidden units behind the attention, for as many parameters as a perceptron of 48."""
GROUPS = ("encoders.*", "translator.*")


@final
class AlternatingFieldsStudy(Study):
    """Two encoders and a translator, with three orders of training."""

    name = "alternating-fields"
    title = "is it better to train encoders and what joins them in turn?"
    seconds = 40.0
    fidelity = "digits in halves; the paper forecasts fields of weather over many epochs"
    data = "digits: 600 to train on, 400 to judge"
    claims = (
        Claim("turns", "Encoders and what joins them are trained better in turn than all at "
              "once, at equal steps.",
              "accuracy after 24 epochs, in turn (a group of the parameters at a step) less at "
              "once",
              arms=("groups in turn", "all at once")),
        Claim("groups", "The groups of the architecture are better than random groups.",
              "accuracy after 24 epochs, in turn less random groups in turn, whose shares of the "
              "parameters differ",
              arms=("groups in turn", "random groups in turn")),
        Claim("equal moves", "It is better than half as many epochs of all at once, in which each "
              "parameter moves as often.",
              "accuracy, in turn after 24 epochs less at once after 12",
              arms=("groups in turn", "all at once, half the epochs")),
        Claim("attention", "A translator that fuses the fields by self-attention is better than a "
              "perceptron of as many parameters.",
              "accuracy after 48 epochs in turn, self-attention less perceptron",
              arms=("groups in turn, attention", "groups in turn, perceptron")),
        Claim("attention, turns", "With that translator too training in turn is better than all at "
              "once, at equal steps.",
              "accuracy after 48 epochs with self-attention, in turn (a group of the parameters at "
              "a step) less at once",
              arms=("groups in turn, attention", "all at once, attention")),
    )  # fmt: skip
    null = Claim("lots", "Labels by lot are not told of other rows, in turn.",
                 "accuracy after 24 epochs, in turn, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Run the recipe, and again on labels by lot."""
        x, label = shuffled_digits(seed)
        n, epochs = (TINY, 4) if tiny else (ROWS, EPOCHS)
        tick("digits")
        first = _right(x[:n], label[:n], epochs, seed)
        fused = dict[str, dict[tuple[str, int], float]]()
        for kind in ("attention", "perceptron"):
            tick(kind)
            fused[kind] = translated(kind, x[:n], label[:n], LONGER * epochs, seed)
        last, attending = LONGER * epochs, fused["attention"]
        tick("labels by lot")
        with arm(Arms(), "labels by lot"):
            lots = by_lot(x[:n], seed, epochs)
        return {
            "turns": first[TURNS, epochs] - first[JOINT, epochs],
            "groups": first[TURNS, epochs] - first[RANDOM, epochs],
            "equal moves": first[TURNS, epochs] - first[JOINT, epochs // len(GROUPS)],
            "attention": attending[TURNS, last] - fused["perceptron"][TURNS, last],
            "attention, turns": attending[TURNS, last] - attending[JOINT, last],
            "lots": lots,
            **{f"{arm} | {n} epochs": v for (arm, n), v in first.items() if n % 6 == 0},
            **{f"{arm}, {kind} | {n} epochs": v for kind, found in fused.items()
               for (arm, n), v in found.items() if n % 12 == 0},
        }  # fmt: skip


def by_lot(x: Tensor, seed: int, epochs: int) -> float:
    """Return the accuracy in turn on labels by lot, less that of chance."""
    found = _right(x, labels_by_lot(x, 10, seed), epochs, seed)
    return found[TURNS, epochs] - 0.1


def translated(
    kind: str, x: Tensor, label: Tensor, epochs: int, seed: int
) -> dict[tuple[str, int], float]:
    """Return the accuracy of each arm after each number of epochs, for one kind of translator.

    Parameters
    ----------
    kind : {"attention", "perceptron"}
    x, label : Tensor
    epochs, seed : int
    """
    with arm(given := Arms(), kind):
        found = _right(x, label, epochs, seed, attends=kind == "attention")
    for name in (TURNS, JOINT):
        note_for(f"{name}, {kind}", **given.given[name])
    return found


def _right(
    x: Tensor, label: Tensor, epochs: int, seed: int, attends: bool = False
) -> dict[tuple[str, int], float]:
    """Return the accuracy of each arm after each number of epochs."""
    answer = alternating_fields(
        Model(drawn(lambda: FieldNet(attends), seed).eval()), items_of(x, label), groups=GROUPS,
        epochs=epochs, rate=3e-3, seed=2 * seed, progress=False,
    )  # fmt: skip
    return {(str(r["arm"]), int(r["epochs"])): float(r["accuracy"]) for r in answer.rows}


class FieldNet(nn.Module):
    """An encoder for each half of a digit, a translator of both, and a head.

    Parameters
    ----------
    attends : bool
        The translator is self-attention over the two fields before a narrower hidden layer, else a
        perceptron of as many parameters.
    """

    def __init__(self, attends: bool) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
            for _ in range(2)
        )
        first = [nn.Unflatten(1, (2, 16)), Attention(16, 2), nn.Flatten()] if attends else []
        hidden = NARROW if attends else 48
        self.translator = nn.Sequential(
            *first, nn.Linear(32, hidden), nn.ReLU(), nn.Linear(hidden, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the digits."""
        parts = [encoder(h) for encoder, h in zip(self.encoders, x.chunk(2, 1), strict=True)]
        return self.translator(torch.cat(parts, 1))
