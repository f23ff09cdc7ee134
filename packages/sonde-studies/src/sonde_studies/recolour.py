"""Detection of recoloured images by correlations of neighbouring pixels and channels.

Patches of ten pictures, recoloured by curves and by mixing channels. A head learns on eight
pictures and judges the other two.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor
from torch.nn.functional import avg_pool2d

from sonde_studies._photographs import photographs, through_filter
from sonde_studies.arms import note, part
from sonde_studies.parts.colours import KINDS, Patches, features, patches_of, recoloured
from sonde_studies.parts.heads import linear_head
from sonde_studies.study import Claim, Figures, Study, Tick

TINY, HELD, FLAT, DARKER, LEVEL = 8, 2, 0.01, 0.9, 0.95
"""Patches of a picture in tiny runs; pictures of a fold; the least standard deviation of a channel
of a patch; the factor of darker patches; of intervals over pictures."""


class Side(NamedTuple):
    """Patches of one picture: as they were, with half of them recoloured, and which half."""

    plain: Patches
    made: Patches
    changed: Bool[Tensor, "patch"]


@final
class RecolourStudy(Study):
    """Half of the patches of ten pictures are recoloured and must be detected in other pictures."""

    name = "recolour"
    title = "do correlations of neighbours and channels tell recoloured pictures?"
    fidelity = (
        "a linear head on the correlations; the paper trains a network on them. A filter of "
        "colours is simulated at half the size. All seeds share ten pictures, so a figure is what "
        "the 95 % interval over pictures clears 0 by, and 0 where it contains 0"
    )
    data = "seven photographs and three pictures of instruments in patches of 40 x 40; five folds, "
    data += "in each of which two pictures judge"
    claims = (
        Claim("neighbours", "Correlations of neighbours tell recoloured patches of other "
              "pictures.",
              "accuracy less 0.5, cleared by its interval over pictures"),
        Claim("filtered", "They tell them where a camera's filter left one colour for each pixel.",
              "accuracy less 0.5, cleared by its interval over filtered pictures"),
        Claim("channels", "Correlations of channels tell them in other pictures.",
              "accuracy less 0.5, cleared by its interval over pictures"),
        Claim("both", "Both together, with more weights, tell more than channels alone.",
              "accuracy of both less that of channels, cleared by its interval over pictures",
              arms=("both", "channels")),
        Claim("filtered both", "They tell more than channels alone, which have fewer weights, "
              "where there was a filter.",
              "accuracy of both less that of channels, cleared by its interval, filtered pictures",
              arms=("filtered both", "filtered channels")),
        Claim("blurred", "Channels tell less of patches that were blurred after the change.",
              "accuracy less that on blurred patches, cleared by its interval over pictures",
              arms=("channels", "blurred")),
    )  # fmt: skip
    null = Claim("darker", "Patches that are darker by a tenth are not told from unchanged ones.",
                 "accuracy of both, mean over pictures", above=0.5)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Recolour patches, and test whether heads detect them in pictures held out."""
        draw = torch.Generator().manual_seed(seed)
        shown = list(photographs().values())
        folds = torch.randperm(len(shown), generator=draw).split(HELD)
        found: dict[str, Tensor] = {}
        for name, change in (("", lambda x: x), ("filtered ", through_filter)):
            tick(f"{name}patches")
            sides = [_side(change(x), draw, TINY if tiny else None) for x in shown]
            for kind in KINDS:
                with part(name + kind):
                    found[name + kind] = accuracies(kind, sides, folds, lambda s: s.made)
            if not name:
                with part("blurred"):
                    found["blurred"] = accuracies("channels", sides, folds, _blurred)
                found["darker"] = accuracies("both", sides, folds, _darker)
        return {
            "neighbours": cleared(found["neighbours"] - 0.5),
            "filtered": cleared(found["filtered neighbours"] - 0.5),
            "channels": cleared(found["channels"] - 0.5),
            "both": cleared(found["both"] - found["channels"]),
            "filtered both": cleared(found["filtered both"] - found["filtered channels"]),
            "blurred": cleared(found["channels"] - found["blurred"]),
            "darker": float(found["darker"].mean()),
            **{f"accuracy | {arm}": float(v.mean()) for arm, v in found.items()},
            **{f"standard error over pictures | {arm}": _error(v) for arm, v in found.items()},
        }


def accuracies(
    kind: str, sides: Sequence[Side], folds: Sequence[Tensor], seen: Callable[[Side], Tensor]
) -> Float[Tensor, "picture"]:
    """Return the accuracy on each picture of a head that learned on the pictures of other folds.

    Parameters
    ----------
    kind : str
        Of the features.
    sides : sequence of Side
        One for each picture.
    folds : sequence of Int[Tensor, "picture"]
        Numbers of the pictures of each fold.
    seen : callable
        Takes a side; the patches that judge.
    """
    made = [features(kind, s.made).numpy() for s in sides]
    asked = [features(kind, seen(s)).numpy() for s in sides]
    truth = [s.changed.numpy() for s in sides]
    right = torch.zeros(len(sides), dtype=torch.float64)
    for fold in folds:
        held = fold.tolist()
        learn = [i for i in range(len(sides)) if i not in held]
        x, y = (np.concatenate([v[i] for i in learn]) for v in (made, truth))
        head = linear_head().fit(x, y)
        note(rows=len(x), parameters=x.shape[1] + 1)
        for i in held:
            right[i] = float(head.score(asked[i], truth[i]))
    return right


def cleared(values: Float[Tensor, "picture"]) -> float:
    """Return by how much the 95 % interval of a mean over pictures clears 0, with its sign.

    It is 0 where the interval contains 0: an interval's lower end alone would be negative where
    nothing was found, and a negative figure says that the opposite was found.

    Parameters
    ----------
    values : Float[Tensor, "picture"]
    """
    mean = float(values.mean())
    quantile = float(stdtrit(len(values) - 1, 1 - (1 - LEVEL) / 2))
    clears = max(0.0, abs(mean) - quantile * _error(values))
    return clears if mean > 0 else -clears


def _side(picture: Tensor, draw: torch.Generator, n: int | None) -> Side:
    """Return patches without those that have a channel of one value, where correlations end."""
    plain = (patches_of(picture, draw) * 255).round() / 255
    plain = plain[plain.std((2, 3)).amin(1) > FLAT][:n]
    return Side(plain, *recoloured(plain, draw))


def _blurred(side: Side) -> Tensor:
    return avg_pool2d(side.made, 3, 1, 1)


def _darker(side: Side) -> Tensor:
    """Return the patches as they were, darker where the others were recoloured."""
    dark = (side.plain * 255 * DARKER).round() / 255
    return torch.where(side.changed[:, None, None, None], dark, side.plain)


def _error(values: Tensor) -> float:
    return float(values.std()) / len(values) ** 0.5
