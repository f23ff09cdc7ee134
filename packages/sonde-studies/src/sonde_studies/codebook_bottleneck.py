"""A codebook as a bottleneck: image factors that survive each codebook size.

Digits with a rotation and a brightness; codes are k-means of the states of a trained net, or
learned with the net.
"""

import warnings
from typing import Any, final

import torch
from sklearn.exceptions import ConvergenceWarning  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde import Model
from sonde.layers import VectorQuantizer
from sonde_studies._recipe_data import learned, mlp, shuffled_digits
from sonde_studies.arms import note_again, note_for
from sonde_studies.recipes.codebook_bottleneck import codebook_bottleneck
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY = 700, 300, 20
SIZES = (4, 16, 64, 256)
LEARNED = (4, 16, 64)
"""Numbers of codes that are learned with the net."""
FACTORS = ("digit", "turned", "bright")


@final
class CodebookBottleneckStudy(Study):
    """States of a digit classifier, replaced by the nearest of a few codes."""

    name = "codebook-bottleneck"
    title = "which factors of a picture survive a small vocabulary of codes?"
    paper = "vandenoord2017vqvae"
    fidelity = "factors of a picture, not of speech; the codes are not decoded into pictures"
    data = "digits, half of them turned by 90 degrees and half of them at half brightness"
    claims = (
        Claim("class", "Sixty-four codes keep the digit to five points.",
              "accuracy of naming the digit, 64 codes less the states, and 0.05",
              arms=("k-means codes", "states")),
        Claim("trained", "The digit, which was trained, survives fewer codes than rotation does.",
              "what 16 codes keep of a head's accuracy over chance, digit less rotation",
              arms=("digit", "rotation")),
        Claim("order", "Factors survive in the order of their variance: brightness first.",
              "what 16 codes keep of a head's accuracy over chance, brightness less rotation",
              arms=("brightness", "rotation")),
        Claim("learned", "Codes that are learned with the net, as a tenth more parameters, keep "
              "more of the digit than codes of states, which also read the rows of the heads.",
              "accuracy of naming the digit, 16 codes, learned less k-means",
              arms=("16 learned codes", "k-means codes")),
        Claim("forgotten", "And they keep, with as many parameters more and rows less, less of "
              "the rotation.",
              "accuracy of naming the rotation, 16 codes, k-means less learned",
              arms=("k-means codes", "16 learned codes")),
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
        for name in ("k-means codes", "states"):
            note_again(name, "train")
            note_for(name, rows=FIT + len(items) // 2)
        for name in FACTORS:
            note_for(
                {"turned": "rotation", "bright": "brightness"}.get(name, name), rows=len(items)
            )
        sizes = SIZES[:3] if tiny else SIZES
        found = codebook_bottleneck(
            net, items, factors=FACTORS, sizes=sizes, site="3", seed=seed, progress=False
        )
        row = {(r["factor"], r["codes"]): r for r in found.rows}
        own = dict[str, float]()
        for n in LEARNED[:2] if tiny else LEARNED:
            tick(f"{n} learned codes")
            quantised = _quantised(flat[:FIT], label[:FIT], n, seed, TINY if tiny else STEPS)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # states are codes already
                answer = codebook_bottleneck(
                    Model(quantised), items, factors=FACTORS, sizes=(n,), site="4", seed=seed,
                    progress=False,
                )  # fmt: skip
            codes = [r for r in answer.rows if r["codes"]]
            own |= {f"{r['factor']} | {n} learned codes": float(r["accuracy"]) for r in codes}
        whole = {f: row[f, None]["accuracy"] for f in FACTORS}
        kept = {f: row[f, 16]["kept"] for f in FACTORS}
        return {
            "class": row["digit", 64]["accuracy"] - whole["digit"] + 0.05,
            "trained": kept["digit"] - kept["turned"],
            "order": kept["bright"] - kept["turned"],
            "learned": own["digit | 16 learned codes"] - row["digit", 16]["accuracy"],
            "forgotten": row["turned", 16]["accuracy"] - own["turned | 16 learned codes"],
            "permuted": row["digit", 16]["codes of other rows"],
            **{f"{f} | states": v for f, v in whole.items()},
            **{f"{f} | {n} codes": row[f, n]["accuracy"] for f in FACTORS for n in sizes},
            **own,
        }


def _quantised(x: Tensor, label: Tensor, n: int, seed: int, steps: int) -> nn.Sequential:
    """Return a net that was trained with codes in place of its last hidden states."""
    net: Any = drawn(lambda: mlp(64), seed)
    net.insert(4, VectorQuantizer(64, n, seed=seed))
    front, codes = net[:4], net[4]

    def loss(rows: Tensor) -> Tensor:
        return cross_entropy(net(x[rows]), label[rows]) + codes.loss(front(x[rows]))

    minimise(loss, net.parameters(), len(x), steps=steps, seed=seed)
    return net.eval()
