"""Several encoders together: whether they say more than the best of them.

Nets that see different columns of a digit. The fusions of the papers are trained; these are linear
heads on frozen states.
"""

from typing import Any, final

import torch
from torch import Tensor, nn

from sonde import Model
from sonde_studies._recipe_data import Part, items_of, learned, mlp, shuffled_digits
from sonde_studies.recipes.feature_fusion import JOINT, SMALL, feature_fusion
from sonde_studies.study import Claim, Figures, Study, Tick

FIT, TINY = 600, 150


@final
class FeatureFusionStudy(Study):
    """Three encoders of overlapping halves of a digit, fused by the recipe."""

    name = "feature-fusion"
    title = "do several encoders together say more than the best one?"
    fidelity = "linear heads on frozen states; principal components in place of an autoencoder"
    data = "digits: 600 to train three encoders of half the pixels each, 1,197 for heads"
    claims = (
        Claim("joint", "Together they are right more often than the best alone.",
              "accuracy together less that of the best encoder"),
        Claim("narrow", "A tenth of the width keeps that accuracy to two points.",
              "accuracy at a tenth of the width less together, and 0.02"),
        Claim("each", "Leaving out any of the three costs accuracy.",
              "accuracy together less that without the least needed encoder"),
    )  # fmt: skip
    null = Claim("copy", "A second encoder that is the first adds nothing.",
                 "accuracy together less that of the encoder alone")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the encoders, ask the recipe, and once with an encoder of noise."""
        tick("train")
        x, label = shuffled_digits(seed)
        n = TINY if tiny else FIT
        draw = torch.Generator().manual_seed(seed)
        columns = [torch.randperm(64, generator=draw)[:32] for _ in range(3)]
        encoders = [_encoder(c, x[:n], label[:n], seed + i) for i, c in enumerate(columns)]
        items = items_of(x[FIT:], label[FIT:])
        tick("fuse")
        score = _scores(encoders[0], encoders[1], items, seed, encoders[2])
        blind = torch.randn(len(items), 64, generator=draw)
        noisy = [{**i, "x": torch.cat([i["x"], z])} for i, z in zip(items, blind, strict=True)]
        pair = _wide(encoders[0], slice(0, 64)), _wide(_encoder_of_noise(seed), slice(64, 128))
        drowned = _scores(*pair, noisy, seed)
        copy = _scores(encoders[0], encoders[0], items, seed)
        alone = max(score[name] for name in ("first", "second", "third"))
        least = max(v for arm, v in score.items() if arm.startswith("without"))
        return {
            "joint": score[JOINT] - alone,
            "narrow": score[SMALL] - score[JOINT] + 0.02,
            "each": score[JOINT] - least,
            "copy": copy[JOINT] - copy["first"],
            **{f"accuracy | {arm}": v for arm, v in score.items()},
            "accuracy | first with an encoder of noise": drowned[JOINT],
        }


def _encoder(columns: Tensor, x: Tensor, label: Tensor, seed: int) -> Model:
    """Return the states below the logits of a net that learned from some columns."""
    net = learned(mlp(32), x[:, columns], label, seed).module
    return Model(Part(columns, nn.Sequential(*list(net.children())[:-1])).eval())


def _encoder_of_noise(seed: int) -> Model:
    torch.manual_seed(seed)
    return Model(nn.Sequential(nn.Linear(64, 64), nn.ReLU()).eval())


def _wide(model: Model, columns: slice) -> Model:
    """Return a model that reads its columns of a wider row."""
    return Model(Part(torch.arange(128)[columns], model.module).eval())


def _scores(
    one: Model, two: Model, items: Any, seed: int, third: Model | None = None
) -> dict[str, float]:
    found = feature_fusion(one, two, items, third=third, seed=seed, progress=False)
    return {str(row["source"]): float(row["accuracy"]) for row in found.rows}  # pyright: ignore
