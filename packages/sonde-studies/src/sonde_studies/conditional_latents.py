"""Coding of image patches, conditioned on a dictionary of other images' patches."""

from dataclasses import replace
from typing import final

import numpy as np
import torch
from torch import Tensor

from sonde.compress import ConditionalCodec, FeaturePCA, bd_rate
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import squares_of

SIZES, STEP, STEPS, OUTSIDE = (1, 4, 16, 64, 256, 1024), 3.0, (1.5, 3.0, 6.0), 1_000
NETS = {1: "a net of 1 of 64", 2: "a net of 2 of 64", -2: "a net of 2 of 64, noise"}


@final
class ConditionalLatentsStudy(Study):
    """Patches of 4 x 4 pixels of digits, with dictionaries of 1 to 1,024 entries."""

    name = "conditional-latents"
    title = "does a dictionary of outside features lower the rate, and how with its size?"
    paper = "wu2025clc"
    fidelity = (
        "a net makes one reference of entries whose numbers are sent; the paper finds them by "
    )
    fidelity += "features of the picture, and has a further latent of spreads"
    data = "digits: patches of 1,000 for the dictionary, of 797 to code; grey levels from 0 to 16"
    claims = (
        Claim("dictionary", "With 64 entries patches take fewer bits than with their mean alone.",
              "share of the bits that is saved"),
        Claim("larger", "With 256 entries they take fewer than with 16.",
              "share of the bits that is saved"),
        Claim("like a logarithm", "From 1 to 64 entries, bits lie on a line over the logarithm of "
              "the size.", "share of the variance, less 0.9"),
        Claim("too large", "With 1,024 entries, and the memory of them, they take more than with "
              "the best size.",
              "bits with 1,024 over bits at best, less 1",
              arms=("1024 entries", "best size")),
        Claim("components", "At equal error 64 entries, in four times the memory of the "
              "components, take less than principal components.",
              "share of the rate that is saved, over three steps",
              arms=("64 entries", "components")),
        Claim("not of noise", "Of patches of noise a dictionary of 64, with 64 times the memory, "
              "costs bits.",
              "bits with 64 entries over bits with one, less 1",
              arms=("64 entries", "1 entries")),
        Claim("synthesised", "A reference that a net makes of two entries of 64 saves a tenth "
              "of the bits of the nearest as it is, which has 2,178 trained numbers less.",
              "share of the bits that is saved, numbers of entries counted", above=0.1),
        Claim("of several", "It takes fewer bits than a reference that a net makes of one entry.",
              "share of the bits that is saved, numbers of entries counted"),
        Claim("over larger", "It takes fewer bits than the nearest entry at the best size.",
              "share of the bits that is saved, numbers of entries counted"),
        Claim("disturbed", "With noise on all entries, a tenth of their spread, it keeps half of "
              "what it saves over the mean alone.",
              "share of the bits that is saved, less half of the share without noise"),
    )  # fmt: skip
    null = Claim("off", "The stream alone gives back each pixel to half a step.",
                 "share of pixels that are off by more, with references that a net makes of two "
                 "entries")  # fmt: skip

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
        tick("synthesis")
        made = {n: ConditionalCodec.fit(outside, 64, STEP, seed, references=n) for n in (1, 2)}
        joined = {n: 8 * len(codec.encode(fresh)) / len(fresh) for n, codec in made.items()}
        joined[-2] = 8 * len(_disturbed(made[2], seed).encode(fresh)) / len(fresh)
        noise = [outside.std(0) * torch.randn(len(v), 16, generator=draw) for v in (outside, fresh)]
        plain, told = (
            8 * len(ConditionalCodec.fit(noise[0], size, STEP, seed).encode(noise[1]))
            for size in (1, 64)
        )
        last = sizes[-1]
        for size in sizes:
            note_for(f"{size} entries", rows=len(outside), bytes=64 * size)
        note_for("components", rows=len(outside), bytes=64 * 16)
        note_for("best size", rows=len(outside), bytes=64 * min(bits, key=lambda size: bits[size]))
        note_for(f"{SIZES[-1]} entries", rows=len(outside), bytes=64 * SIZES[-1])
        line = np.corrcoef(np.log(sizes[:4]), [bits[s] for s in sizes[:4]])[0, 1] ** 2
        return {
            "dictionary": 1 - bits[64] / bits[1],
            "larger": 1 - bits[min(256, last)] / bits[16],
            "like a logarithm": float(line) - 0.9,
            "too large": bits[last] / min(bits.values()) - 1,
            "components": -_against_components(outside, fresh, seed),
            "not of noise": told / plain - 1,
            "synthesised": 1 - joined[2] / bits[64],
            "of several": 1 - joined[2] / joined[1],
            "over larger": 1 - joined[2] / min(bits.values()),
            "disturbed": (1 - joined[-2] / bits[1]) - 0.5 * (1 - joined[2] / bits[1]),
            "off": share_off(made[2], fresh, fresh),
            **{f"bits of a patch | {size} entries": b for size, b in bits.items()},
            **{f"bits of a patch | {name}": joined[n] for n, name in NETS.items()},
        }


def share_off(codec: ConditionalCodec, rows: Tensor, coded: Tensor) -> float:
    """Return the share of numbers from which a stream of coded rows is off by over half a step."""
    off = (codec.decode(codec.encode(coded)) - rows).abs()
    return float((off > codec.step / 2 + 1e-3).double().mean())


def _disturbed(codec: ConditionalCodec, seed: int) -> ConditionalCodec:
    """Return a codec whose entries have noise of a tenth of their spread."""
    draw = torch.Generator().manual_seed(seed)
    entries = codec.entries
    noise = torch.randn(entries.shape, generator=draw, dtype=entries.dtype)
    return replace(codec, entries=entries + 0.1 * entries.std() * noise)


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
