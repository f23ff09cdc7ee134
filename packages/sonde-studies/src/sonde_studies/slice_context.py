"""Image latents predicted slice by slice and in a two-pass checkerboard."""

from typing import final

import torch
from torch import Tensor

from sonde.compress import SliceContext
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

STEPS, SPREAD, TRAIN = 100, 10.0, 1_400
ARMS = {
    "factorised": {"slices": (4,), "checkerboard": False, "attention": False},
    "slices": {"slices": (1, 1, 2), "checkerboard": False, "attention": False},
    "checkerboard": {"slices": (4,), "checkerboard": True, "attention": False},
    "both": {"slices": (1, 1, 2), "checkerboard": True, "attention": False},
    "attention": {"slices": (1, 1, 2), "checkerboard": True, "attention": True},
}


@final
class SliceContextStudy(Study):
    """The same latents with equal error, coded with five kinds of context."""

    name = "slice-context"
    title = "which context saves bits of a latent at equal distortion?"
    paper = "wang2025s2lic"
    fidelity = "context models alone: the latent is fixed, so that every arm has the same error"
    data = "digits: components of patches of 2 x 2 pixels; 1,400 to learn from, 397 to code"
    claims = (
        Claim("both", "Slices with a checkerboard take fewer bits than independent numbers.",
              "share of the bits that is saved",
              arms=("both", "factorised")),
        Claim("slices", "Slices alone do.",
              "share of the bits that is saved, with 2.9 times the parameters",
              arms=("slices", "factorised")),
        Claim("checkerboard", "A checkerboard adds to slices.",
              "bits of slices less bits of both, with twice the parameters, as a share of the "
              "former",
              arms=("both", "slices")),
        Claim("attention", "Attention to earlier slices adds to both.",
              "bits without less bits with it, a tenth more parameters, as a share of the former",
              arms=("attention", "both")),
        Claim("code", "The stream is at most 2 % longer than the estimate.",
              "0.02 less the excess, header left out"),
    )  # fmt: skip
    null = Claim("shuffled", "If every number comes from another place, context saves nothing.",
                 "share of the bits that is saved by both, 0 where context costs bits")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each context on the same latents, and code test latents."""
        train, fresh = _latents(seed)
        if tiny:
            train, fresh = train[:100], fresh[:20]
        steps = 10 if tiny else STEPS
        bits: dict[str, float] = {}
        excess = 0.0
        for name, given in ARMS.items():
            tick(name)
            net = _trained(train, given, seed, steps)
            bits[name] = _bits(net, fresh)
            if name == "both":
                some = fresh
                stream = net.codec().encode(some.movedim(1, -1))
                excess = 8 * (len(stream) - 60) / (_bits(net, some) * len(some)) - 1
        tick("shuffled")
        draw = torch.Generator().manual_seed(seed)
        mixed = [_shuffled(part, draw) for part in (train, fresh)]
        null = [
            _bits(_trained(mixed[0], ARMS[name], seed, steps), mixed[1])
            for name in ("factorised", "both")
        ]
        return {
            "both": 1 - bits["both"] / bits["factorised"],
            "slices": 1 - bits["slices"] / bits["factorised"],
            "checkerboard": 1 - bits["both"] / bits["slices"],
            "attention": 1 - bits["attention"] / bits["both"],
            "code": 0.02 - excess,
            "shuffled": max(0.0, 1 - null[1] / null[0]),
            **{f"bits of a latent | {name}": b for name, b in bits.items()},
        }


def _latents(seed: int) -> tuple[Tensor, Tensor]:
    """Return training maps (digit, 4, 4, 4), and test maps."""
    x = shuffled_digits(seed)[0].reshape(-1, 1, 8, 8)
    patches = torch.nn.functional.pixel_unshuffle(x, 2).movedim(1, -1)
    rows = patches[:TRAIN].flatten(0, 2)
    centre = rows.mean(0)
    axes = torch.linalg.svd(rows - centre, full_matrices=False).Vh
    latent = ((patches - centre) @ axes.T).movedim(-1, 1)
    latent = SPREAD * latent / latent[:, 0].std()
    return latent[:TRAIN], latent[TRAIN:]


def _shuffled(latent: Tensor, draw: torch.Generator) -> Tensor:
    """Return maps with the numbers of each channel shuffled."""
    flat = latent.movedim(1, 0).flatten(1)
    order = torch.rand(flat.shape, generator=draw).argsort(1)
    return flat.gather(1, order).reshape(latent.movedim(1, 0).shape).movedim(0, 1)


def _trained(latent: Tensor, given: dict, seed: int, steps: int) -> SliceContext:
    net = drawn(lambda: SliceContext(4, width=16, **given), seed)
    with torch.no_grad():  # spreads start at those of the channels
        first = 0
        passes = 2 if given["checkerboard"] else 1
        for i, size in enumerate(given["slices"]):
            spread = latent[:, first : first + size].std((0, 2, 3)).log()
            for head in net.ahead[passes * i : passes * (i + 1)]:
                head[-1].bias[size:] = spread  # pyright: ignore[reportIndexIssue]
            first += size

    def loss(rows: Tensor) -> Tensor:
        return net(latent[rows])[1].mean()

    minimise(
        loss, net.train().parameters(), len(latent), steps=steps, seed=seed, rate=5e-3, batch=32
    )
    return net.eval()


@torch.no_grad()
def _bits(net: SliceContext, latent: Tensor) -> float:
    """Return the bits of a latent."""
    return float(net(latent)[1].mean())
