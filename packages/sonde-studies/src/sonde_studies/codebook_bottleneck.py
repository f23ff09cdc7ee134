"""A vocabulary of codes as a bottleneck: which factors of a picture survive which size.

Digits with a rotation and a brightness; codes are k-means of the states of a trained net.
"""

from typing import final

import torch
from sklearn.cluster import KMeans  # pyright: ignore[reportMissingTypeStubs]
from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from sonde.layers import VectorQuantizer
from sonde_studies._recipe_data import learned, mlp, shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick

FIT, STEPS, TINY = 1_000, 300, 20
SIZES = (4, 16, 64, 256)
FACTORS = ("digit", "turned", "bright")


@final
class CodebookBottleneckStudy(Study):
    """The states of a classifier of digits, replaced by the nearest of a few codes."""

    name = "codebook-bottleneck"
    title = "which factors of a picture survive a small vocabulary of codes?"
    paper = "vandenoord2017vqvae"
    fidelity = "codes fitted after the training, by k-means"
    data = "digits, half of them turned by 90 degrees and half of them at half brightness"
    claims = (
        Claim("class", "Sixty-four codes keep the digit to five points.",
              "accuracy of a probe of the digit, 64 codes less the states, and 0.05"),
        Claim("trained", "The digit, which was trained, survives fewer codes than rotation does.",
              "what 16 codes keep of a probe's accuracy over chance, digit less rotation"),
        Claim("order", "Factors survive in the order of their variance: brightness first.",
              "what 16 codes keep of a probe's accuracy over chance, brightness less rotation"),
    )  # fmt: skip
    null = Claim("permuted", "Codes of other rows say nothing of the digit.",
                 "accuracy of a probe", above=0.1)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train on digits, quantise, probe each factor."""
        x, label = shuffled_digits(seed)
        draw = torch.Generator().manual_seed(seed)
        turned, bright = (torch.rand(len(x), generator=draw) < 0.5 for _ in range(2))
        pictures = x.reshape(-1, 8, 8)
        pictures = torch.where(turned[:, None, None], pictures.rot90(1, (1, 2)), pictures)
        pictures = pictures * torch.where(bright, 1.0, 0.5)[:, None, None]
        flat = pictures.flatten(1)
        tick("train")
        net = learned(mlp(64), flat[:FIT], label[:FIT], seed, TINY if tiny else STEPS).module
        with torch.no_grad():
            states = net[:4](flat)  # pyright: ignore
        truths = dict(zip(FACTORS, (label, turned.long(), bright.long()), strict=True))
        plain = {f: _probed(states, t) for f, t in truths.items()}
        found: dict[str, dict[int, float]] = {f: {} for f in FACTORS}
        for size in SIZES[:2] if tiny else SIZES:
            tick(f"{size} codes")
            coded = _coded(states, size, seed)
            for factor, truth in truths.items():
                found[factor][size] = _probed(coded, truth)
        most = max(found["digit"])
        kept = {f: _kept(found[f][16], plain[f], 0.1 if f == "digit" else 0.5) for f in FACTORS}
        order = torch.randperm(len(x), generator=draw)
        return {
            "class": found["digit"].get(64, found["digit"][most]) - plain["digit"] + 0.05,
            "trained": kept["digit"] - kept["turned"],
            "order": kept["bright"] - kept["turned"],
            "permuted": _probed(_coded(states, 16, seed)[order], label),
            **{f"{f} | {n} codes": v for f, row in found.items() for n, v in row.items()},
            **{f"{f} | states": v for f, v in plain.items()},
        }


def _kept(value: float, whole: float, chance: float) -> float:
    return (value - chance) / max(whole - chance, 0.05)


@torch.no_grad()
def _coded(states: Tensor, size: int, seed: int) -> Tensor:
    layer = VectorQuantizer(states.shape[1], size, update="fixed").eval()
    fitted = KMeans(size, random_state=seed).fit(states[:FIT].numpy())
    codes = next(v for v in layer.state_dict().values() if v.shape[-2:] == (size, states.shape[1]))
    codes.copy_(torch.from_numpy(fitted.cluster_centers_).reshape(codes.shape))
    return layer(states)


def _probed(rows: Tensor, truth: Tensor) -> float:
    head = LogisticRegression(max_iter=300).fit(rows[:FIT].numpy(), truth[:FIT].numpy())
    return float(head.score(rows[FIT:].numpy(), truth[FIT:].numpy()))
