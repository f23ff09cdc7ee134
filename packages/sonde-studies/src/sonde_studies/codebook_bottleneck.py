"""A codebook as a bottleneck: image factors that survive each codebook size.

Digits with a rotation and a brightness; codes are k-means of the states of a trained net.
"""

from typing import final

import torch

from sonde_studies._recipe_data import learned, mlp, shuffled_digits
from sonde_studies.recipes.codebook_bottleneck import codebook_bottleneck
from sonde_studies.study import Claim, Figures, Study, Tick

FIT, STEPS, TINY = 700, 300, 20
SIZES = (4, 16, 64, 256)
FACTORS = ("digit", "turned", "bright")


@final
class CodebookBottleneckStudy(Study):
    """States of a digit classifier, replaced by the nearest of a few codes."""

    name = "codebook-bottleneck"
    title = "which factors of a picture survive a small vocabulary of codes?"
    paper = "vandenoord2017vqvae"
    fidelity = "codes fitted after the training, by k-means"
    data = "digits, half of them turned by 90 degrees and half of them at half brightness"
    claims = (
        Claim("class", "Sixty-four codes keep the digit to five points.",
              "accuracy of naming the digit, 64 codes less the states, and 0.05"),
        Claim("trained", "The digit, which was trained, survives fewer codes than rotation does.",
              "what 16 codes keep of a head's accuracy over chance, digit less rotation"),
        Claim("order", "Factors survive in the order of their variance: brightness first.",
              "what 16 codes keep of a head's accuracy over chance, brightness less rotation"),
    )  # fmt: skip
    null = Claim("permuted", "Codes of other rows say nothing of the digit.",
                 "accuracy of naming the digit, 16 codes", above=0.1)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train on digits, and run the recipe for three factors of other digits."""
        x, label = shuffled_digits(seed)
        draw = torch.Generator().manual_seed(seed)
        turned, bright = (torch.rand(len(x), generator=draw) < 0.5 for _ in range(2))
        pictures = x.reshape(-1, 8, 8)
        pictures = torch.where(turned[:, None, None], pictures.rot90(1, (1, 2)), pictures)
        flat = (pictures * torch.where(bright, 1.0, 0.5)[:, None, None]).flatten(1)
        tick("train")
        net = learned(mlp(64), flat[:FIT], label[:FIT], seed, TINY if tiny else STEPS)
        tick("codes")
        columns = zip(flat[FIT:], label[FIT:], turned[FIT:], bright[FIT:], strict=True)
        items = [
            {"x": row, "digit": int(c), "turned": int(t), "bright": int(b)}
            for row, c, t, b in columns
        ]
        sizes = SIZES[:3] if tiny else SIZES
        found = codebook_bottleneck(
            net, items, factors=FACTORS, sizes=sizes, site="3", seed=seed, progress=False
        )
        row = {(r["factor"], r["codes"]): r for r in found.rows}
        whole = {f: row[f, None]["accuracy"] for f in FACTORS}
        kept = {f: row[f, 16]["kept"] for f in FACTORS}
        return {
            "class": row["digit", 64]["accuracy"] - whole["digit"] + 0.05,
            "trained": kept["digit"] - kept["turned"],
            "order": kept["bright"] - kept["turned"],
            "permuted": row["digit", 16]["codes of other rows"],
            **{f"{f} | states": v for f, v in whole.items()},
            **{f"{f} | {n} codes": row[f, n]["accuracy"] for f in FACTORS for n in sizes},
        }
