"""Coding of image patches, conditioned on a dictionary of other images' patches."""

from typing import final

import numpy as np
import torch
from torch import Tensor

from sonde.compress import ConditionalCodec, FeaturePCA, bd_rate
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import squares_of

SIZES, STEP, STEPS, OUTSIDE = (1, 4, 16, 64, 256, 1024), 3.0, (1.5, 3.0, 6.0), 1_000


@final
class ConditionalLatentsStudy(Study):
    """Patches of 4 x 4 pixels of digits, with dictionaries of 1 to 1,024 entries."""

    name = "conditional-latents"
    title = "does a dictionary of outside features lower the rate, and how with its size?"
    paper = "wu2025clc"
    fidelity = "the nearest entry is the reference; the paper synthesises it from several by a net"
    data = "digits: patches of 1,000 for the dictionary, of 797 to code; grey levels from 0 to 16"
    claims = (
        Claim("dictionary", "With 64 entries patches take fewer bits than with their mean alone.",
              "share of the bits that is saved"),
        Claim("larger", "With 256 entries they take fewer than with 16.",
              "share of the bits that is saved"),
        Claim("like a logarithm", "From 1 to 64 entries, bits lie on a line over the logarithm of "
              "the size.", "share of the variance, less 0.9"),
        Claim("too large", "With 1,024 entries they take more than with the best size.",
              "bits with 1,024 over bits at best, less 1"),
        Claim("components", "At equal error 64 entries take less than principal components.",
              "share of the rate that is saved, over three steps"),
        Claim("not of noise", "Of patches of noise a dictionary of 64 costs bits.",
              "bits with 64 entries over bits with one, less 1"),
    )  # fmt: skip
    null = Claim("halves", "Dictionaries from two halves of the outside patches take alike bits.",
                 "bits with one over bits with the other, less 1, 64 entries")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Code the same patches with dictionaries of all sizes, and noise of equal variance."""
        x, _ = shuffled_digits(seed)
        x = 16 * (x[:300] if tiny else x)
        n = 200 if tiny else OUTSIDE
        outside, fresh = (squares_of(part, 4).flatten(0, 1) for part in (x[:n], x[n:]))
        sizes = SIZES[:4] if tiny else SIZES
        bits: dict[int, float] = {}
        for size in sizes:
            tick(f"{size} entries")
            codec = ConditionalCodec.fit(outside, size, STEP, seed)
            bits[size] = 8 * len(codec.encode(fresh)) / len(fresh)
        draw = torch.Generator().manual_seed(seed)
        noise = [outside.std(0) * torch.randn(len(v), 16, generator=draw) for v in (outside, fresh)]
        plain, told = (
            8 * len(ConditionalCodec.fit(noise[0], size, STEP, seed).encode(noise[1]))
            for size in (1, 64)
        )
        halves = [
            len(ConditionalCodec.fit(part, 64, STEP, seed).encode(fresh))
            for part in outside[torch.randperm(len(outside), generator=draw)].chunk(2)
        ]
        last = sizes[-1]
        line = np.corrcoef(np.log(sizes[:4]), [bits[s] for s in sizes[:4]])[0, 1] ** 2
        return {
            "dictionary": 1 - bits[64] / bits[1],
            "larger": 1 - bits[min(256, last)] / bits[16],
            "like a logarithm": float(line) - 0.9,
            "too large": bits[last] / min(bits.values()) - 1,
            "components": -_against_components(outside, fresh, seed),
            "not of noise": told / plain - 1,
            "halves": halves[0] / halves[1] - 1,
            **{f"bits of a patch | {size} entries": b for size, b in bits.items()},
        }


def _against_components(outside: Tensor, fresh: Tensor, seed: int) -> float:
    """Return the dictionary's rate minus that of principal components at equal error."""
    curves: list[list[float]] = []
    for kind in ("components", "dictionary"):
        rates, qualities = list[float](), list[float]()
        for step in STEPS:
            if kind == "dictionary":
                codec = ConditionalCodec.fit(outside, 64, step, seed)
            else:
                codec = FeaturePCA.fit(outside, _bits_for(outside, step))
            stream = codec.encode(fresh)
            rates.append(len(stream) / len(fresh))
            qualities.append(-10 * float((codec.decode(stream) - fresh).square().mean().log10()))
        curves += [rates, qualities]
    return bd_rate(*curves)


def _bits_for(rows: Tensor, step: float) -> float:
    """Return the bits of principal components rounded to a step."""
    variances = torch.linalg.eigvalsh(rows.T.double().cov(correction=0))
    return float((0.5 * (variances * 12 / step**2).clamp(min=1).log2()).mean())
