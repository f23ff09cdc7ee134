"""Nets that are trained in one loss on several sources and on numbers made by hand.

Planted posts of a text beside a picture, and digits that three recurrent cells read.
"""

from typing import final

import torch

from sonde_studies._cell_ensembles import EPOCHS, cells_right
from sonde_studies._posts import Posts, dealt, posts, told
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.arms import part
from sonde_studies.study import Claim, Figures, Study, Tick

FIT, TINY, STEPS, NOISE = 600, 100, 400, 0.2
BOTH = "text picture numbers"
POSTS = {
    "both": {"reads": BOTH},
    "text": {"reads": "text numbers", "width": 36},
    "picture": {"reads": "picture numbers", "width": 21, "dim": 18},
    "no numbers": {"reads": "text picture"},
    "frozen": {"reads": BOTH, "frozen": True},
}
CELLS = {
    "shared": {},
    "one": {"which": (0,), "width": 44, "dim": 64},
    "not rebuilt": {"rebuild": 0.0},
    "entropies": {"numbers": True},
    "apart": {"how": "apart"},
    "frozen": {"how": "frozen"},
}
ONE_LOSS = "trained in one loss less as they are, after {} times the updates"


@final
class FusedSourcesStudy(Study):
    """One loss over encoders and fusion, against parts, frozen parts and answers that are averaged.

    Sizes, rates and the weight of what is rebuilt were chosen on other seeds, alike for all arms.
    """

    name = "fused-sources"
    title = "do encoders gain by one loss, with each other and with numbers made by hand?"
    paper = "yang2018ticnn"
    fidelity = (
        "one layer of convolutions and one shared layer for posts; for cells, gated recurrent "
        "units with a fixed random tenth of the weights, and inputs rebuilt at once, not in turn. "
        "What a post's numbers count was planted with the posts"
    )
    data = (
        "planted posts, 1,797 digits beside texts of 24 words, half of them false; digits under "
        "noise, read as lines, as columns and as squares; 600 of each to learn from"
    )
    seconds = 45.0
    claims = (
        Claim("over text", "Text and picture in one net tell false posts better than a net of the "
              "text.", "accuracy, both less text", arms=("posts, both", "posts, text")),
        Claim("over picture", "They do so better than a net of the picture.",
              "accuracy, both less picture", arms=("posts, both", "posts, picture")),
        Claim("made", "Numbers made by hand, in the same loss, add to what the net finds itself.",
              "accuracy, with numbers (an eighth more parameters) less without",
              arms=("posts, both", "posts, no numbers")),
        Claim("one loss", "Encoders that are trained with the fusion tell more than encoders that "
              "were trained alone.",
              f"accuracy, {ONE_LOSS.format(2)}; fewer parameters are trained at a time",
              arms=("posts, both", "posts, frozen")),
        Claim("cells", "Three sparse cells with one shared state name digits better than one cell.",
              "accuracy of three cells less one, in all as many parameters",
              arms=("cells, shared", "cells, one")),
        Claim("rebuilt", "They do so better if the shared state rebuilds what each cell read.",
              "accuracy, rebuilding (1.5 times the parameters) less not",
              arms=("cells, shared", "cells, not rebuilt")),
        Claim("entropies", "Entropies of lines and columns, in the same loss, add to them.",
              "accuracy, with entropies (8 % more parameters) less without",
              arms=("cells, entropies", "cells, shared")),
        Claim("over answers", "They name digits better than cells apart, whose answers are "
              "averaged.", "accuracy, one loss less the mean answer, after three times the updates "
              "and with fewer parameters at a time", arms=("cells, shared", "cells, apart")),
        Claim("cells in one loss", "They do so better than the cells of these under a shared state "
              "that is trained then.",
              f"accuracy, {ONE_LOSS.format(4)}; fewer parameters are trained at a time",
              arms=("cells, shared", "cells, frozen")),
    )  # fmt: skip
    null = Claim("lots", "Of posts whose truth is dealt out by lot, the net tells no others.",
                 "accuracy, both, less 0.5")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each net on the same rows."""
        n, steps, epochs = (TINY, 4, 1) if tiny else (FIT, STEPS, EPOCHS)
        every = posts(seed)
        fit, judge = every[:n], every[FIT:]
        found = dict[str, float]()
        for arm, options in POSTS.items():
            tick(f"posts, {arm}")
            found[arm] = told(fit, judge, seed=seed, steps=steps, **options)  # pyright: ignore
        tick("posts, by lot")
        lots = by_lot(every, n, seed, steps)
        x, label = shuffled_digits(seed)
        draw = torch.Generator().manual_seed(seed)
        x = (x + NOISE * torch.randn(x.shape, generator=draw)).clamp(min=0)
        cell = dict[str, float]()
        for arm, options in CELLS.items():
            with part(f"cells, {arm}"):
                tick(f"cells, {arm}")
                rows = (x[:n], label[:n]), (x[FIT:], label[FIT:])
                cell[arm] = cells_right(*rows, seed, epochs=epochs, **options)  # pyright: ignore
        return {
            "over text": found["both"] - found["text"],
            "over picture": found["both"] - found["picture"],
            "made": found["both"] - found["no numbers"],
            "one loss": found["both"] - found["frozen"],
            "cells": cell["shared"] - cell["one"],
            "rebuilt": cell["shared"] - cell["not rebuilt"],
            "entropies": cell["entropies"] - cell["shared"],
            "over answers": cell["shared"] - cell["apart"],
            "cells in one loss": cell["shared"] - cell["frozen"],
            "lots": lots - 0.5,
            **{f"false posts | {arm}": v for arm, v in found.items()},
            **{f"digits by cells | {arm}": v for arm, v in cell.items()},
        }


def by_lot(every: Posts, n: int, seed: int, steps: int, first: int = FIT) -> float:
    """Return the accuracy on posts from ``first`` on, where truth is dealt out by lot."""
    lots = dealt(every, seed)
    return told(lots[:n], lots[first:], BOTH, seed, steps)
