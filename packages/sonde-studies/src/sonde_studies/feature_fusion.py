"""Several encoders together, against the best single one.

Nets that see different columns of a digit. The fusions of the papers are trained; these are linear
heads on frozen states.
"""

from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from sonde import Model
from sonde_studies._handmade_features import as_model, line_entropies, moments_and_ink
from sonde_studies._recipe_data import Part, items_of, learned, mlp, shuffled_digits
from sonde_studies._sparse_cells import Cell, recurrent_cell
from sonde_studies.arms import note_for, part
from sonde_studies.recipes.feature_fusion import JOINT, SMALL, feature_fusion
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn

FIT, TINY = 600, 150


@final
class FeatureFusionStudy(Study):
    """Three encoders of overlapping halves of a digit, fused by the recipe."""

    name = "feature-fusion"
    title = "do several encoders together say more than the best one?"
    fidelity = "linear heads on frozen states; nets that see half of the pixels"
    data = "digits: 600 to train three encoders of half the pixels, 1,197 for heads; rows of three"
    claims = (
        Claim("joint", "Together, with three times the units, they are right more often than the "
              "best alone.",
              "accuracy together less that of the best encoder",
              arms=("three: both, side by side", "three: first")),
        Claim("narrow", "A tenth of the units keeps that accuracy to two points.",
              "accuracy at a tenth of the width less together, and 0.02",
              arms=("three: both, at a tenth of the width", "three: both, side by side")),
        Claim("coded", "Codes of an autoencoder of a tenth of the units keep the accuracy of all "
              "units to two points.",
              "accuracy of codes of an autoencoder less together, and 0.02",
              arms=("coded: both, at a tenth of the width", "three: both, side by side")),
        Claim("over components", "Codes of the autoencoder, which has more parameters of its "
              "own, keep more than as many principal components.",
              "accuracy of codes of an autoencoder less components",
              arms=("coded: both, at a tenth of the width",
                    "three: both, at a tenth of the width")),
        Claim("over one", "These codes, of fewer units, are right more often than the best "
              "encoder alone.",
              "accuracy of codes of an autoencoder less that of the best encoder",
              arms=("coded: both, at a tenth of the width", "three: first")),
        Claim("each", "Leaving out any of the three, and its units, costs accuracy.",
              "accuracy together less that without the least needed encoder",
              arms=("three: both, side by side", "three: without the first")),
        Claim("made", "Numbers made by hand add to the states of an encoder of all pixels.",
              "accuracy with moments and counts of ink less that of the encoder",
              arms=("by hand: both, side by side", "by hand: first")),
        Claim("lines", "States of single digits, as many units again and taught the digits, add to "
              "those of a net of the row.",
              "accuracy of naming the largest digit's place, single digits and row less row",
              arms=("lines: both, side by side", "lines: first")),
        Claim("sparse", "A recurrent cell of a tenth of the weights loses less than 5 points.",
              "accuracy of a sparse cell less that of a dense one of equal width, and 0.05",
              arms=("cell, 0.1 of the weights", "cell, 1 of the weights")),
        Claim("cells", "States of a sparse cell and entropies of lines add, as more units, to "
              "such an encoder.",
              "accuracy of encoder, cell and entropies less that of the encoder",
              arms=("cells: both, side by side", "cells: first")),
    )  # fmt: skip
    null = Claim("copy", "A second encoder that is the first adds nothing.",
                 "accuracy together less that of the encoder alone")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the encoders, run the recipe, and once with an encoder of noise."""
        tick("train")
        x, label = shuffled_digits(seed)
        n = TINY if tiny else FIT
        draw = torch.Generator().manual_seed(seed)
        columns = [torch.randperm(64, generator=draw)[:32] for _ in range(3)]
        encoders = [_encoder(c, x[:n], label[:n], seed + i) for i, c in enumerate(columns)]
        items = items_of(x[FIT:], label[FIT:])
        tick("fuse")
        score = _scores("three", encoders[0], encoders[1], items, seed, encoders[2])
        coded = _scores("coded", encoders[0], encoders[1], items, seed, encoders[2], "autoencoder")
        blind = torch.randn(len(items), 64, generator=draw)
        noisy = [{**i, "x": torch.cat([i["x"], z])} for i, z in zip(items, blind, strict=True)]
        pair = _wide(encoders[0], slice(0, 64)), _wide(_encoder_of_noise(seed), slice(64, 128))
        drowned = _scores("noise", *pair, noisy, seed)
        copy = _scores("copy", encoders[0], encoders[0], items, seed)
        tick("lines, cells and numbers made by hand")
        every = _encoder(torch.arange(64), x[:n], label[:n], seed)
        made = _scores("by hand", every, as_model(moments_and_ink), items, seed)
        cells = dict[float, Cell]()
        for share in (0.1, 1.0):
            with part(f"cell, {share:g} of the weights"):
                cells[share] = recurrent_cell(x[:n], label[:n], seed, share)
        right = {share: cell.accuracy(x[FIT:], label[FIT:]) for share, cell in cells.items()}
        beside = _scores(
            "cells", every, as_model(cells[0.1]), items, seed, as_model(line_entropies)
        )
        lines = _lines(encoders[0], x, label, seed, n)
        alone = max(score[name] for name in ("first", "second", "third"))
        least = max(v for arm, v in score.items() if arm.startswith("without"))
        return {
            "joint": score[JOINT] - alone,
            "narrow": score[SMALL] - score[JOINT] + 0.02,
            "coded": coded[SMALL] - score[JOINT] + 0.02,
            "over components": coded[SMALL] - score[SMALL],
            "over one": coded[SMALL] - alone,
            "each": score[JOINT] - least,
            "made": made[JOINT] - made["first"],
            "lines": lines[JOINT] - lines["first"],
            "sparse": right[0.1] - right[1.0] + 0.05,
            "cells": beside[JOINT] - beside["first"],
            "copy": copy[JOINT] - copy["first"],
            **{f"accuracy | {arm}": v for arm, v in score.items()},
            "accuracy | codes of an autoencoder": coded[SMALL],
            "accuracy | first with an encoder of noise": drowned[JOINT],
            "accuracy | by hand": made["second"],
            "accuracy | all pixels": made["first"],
            "accuracy | all pixels and by hand": made[JOINT],
            "accuracy | all pixels, cell and entropies": beside[JOINT],
            "accuracy | rows of three, whole": lines["first"],
            "accuracy | rows of three, single digits": lines["second"],
            "accuracy | rows of three, both": lines[JOINT],
            **{f"accuracy | cell, {share:g} of the weights": v for share, v in right.items()},
        }


def _encoder(columns: Tensor, x: Tensor, label: Tensor, seed: int, width: int = 64) -> Model:
    """Return the states before the logits of a net trained on some columns."""
    net = learned(mlp(len(columns), width), x[:, columns], label, seed).module
    return Model(Part(columns, nn.Sequential(*list(net.children())[:-1])).eval())


def _encoder_of_noise(seed: int) -> Model:
    return Model(drawn(lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU()), seed).eval())


def _wide(model: Model, columns: slice) -> Model:
    """Return a model that reads its own columns from a wider row."""
    return Model(Part(torch.arange(128)[columns], model.module).eval())


def _scores(
    name: str,
    one: Model,
    two: Model,
    items: Any,
    seed: int,
    third: Model | None = None,
    summary: Literal["components", "autoencoder"] = "components",
) -> dict[str, float]:
    found = feature_fusion(one, two, items, third=third, summary=summary, seed=seed, progress=False)
    for row in found.rows:
        weights = 10 * (int(str(row["units"])) + 1)
        note_for(f"{name}: {row['source']}", rows=len(items), parameters=weights)
    return {str(row["source"]): float(row["accuracy"]) for row in found.rows}  # pyright: ignore


def _lines(encoder: Model, x: Tensor, label: Tensor, seed: int, n: int) -> dict[str, float]:
    """Return scores of a net that reads rows of three, of the encoder of each digit, and of both.

    The net of rows learns the place of the largest digit, as many steps as the encoder, in as many
    rows of the same digits; its states are as wide as the three of the encoder together.
    """
    draw = torch.Generator().manual_seed(seed)
    seen = torch.randint(n, (n, 3), generator=draw)
    rows = torch.randint(FIT, len(x), (len(x) - FIT, 3), generator=draw)
    whole = _encoder(torch.arange(192), x[seen].flatten(1), label[seen].argmax(1), seed, 192)
    each = as_model(lambda r: encoder.module(r.reshape(-1, 64)).reshape(len(r), -1))
    return _scores("lines", whole, each, items_of(x[rows].flatten(1), label[rows].argmax(1)), seed)
