"""Pictures generated scale by scale, with attention within scales and a linear layer between them.

Digits of 8 x 8 pixels in four scales; larger pictures save more multiply-adds.
"""

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.detect import Frechet
from sonde_studies._growing_scales import (
    SCALE,
    SIDES,
    ScaleNet,
    codes_of,
    multiply_adds,
    read_back,
    sampled,
)
from sonde_studies._recipe_data import learned, mlp
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import digit_images, drawn, minimise

FIT, STEPS, TINY, JUDGE_STEPS, BATCH, RATE = 1_000, 600, 4, 300, 16, 6e-3
ARMS = {
    "full": ("full", "full"),
    "decoupled": ("within", "linear"),
    "within": ("within", "within"),
    "linear": ("linear", "linear"),
}


@final
class ScaleGenerationStudy(Study):
    """Transformers of one size that predict all codes of a scale from all earlier scales."""

    name = "scale-generation"
    title = "can attention stay within a scale, if a linear layer joins the scales?"
    paper = "ren2024mvar"
    fidelity = "linear attention for Mamba, rounded pixels for codes; only the first scale is told"
    data = "digits as 85 codes of 1, 4, 16 and 64 pixels; 1,000 to train on, 797 to judge"
    claims = (
        Claim("bits", "Attention within scales, with linear layers between, takes at most 0.02 "
              "bits a code more than full attention.",
              "bits a code of full attention less its own, and 0.02",
              arms=("decoupled", "full")),
        Claim("between", "It takes fewer bits than attention within scales alone.",
              "bits a code of attention within scales less its own",
              arms=("decoupled", "within")),
        Claim("near", "It takes fewer bits than linear layers alone.",
              "bits a code of linear layers less its own",
              arms=("decoupled", "linear")),
        Claim("asked", "Its samples show the class asked for more often than those within scales.",
              "accuracy of a judge on samples, less that of attention within scales",
              arms=("decoupled", "within")),
        Claim("samples", "They are at most a tenth farther from fresh digits than those of full "
              "attention.",
              "1.1 less the ratio of the Frechet distances to fresh digits",
              arms=("decoupled", "full")),
    )  # fmt: skip
    null = Claim("by lot", "Classes by lot that a net learned with save no bits of fresh digits.",
                 "bits a code with other classes by lot, less with their own")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the nets, count their bits on fresh digits, and judge their samples."""
        x, label = digit_images(seed)
        codes = codes_of(x[:, 0])
        tick("judge")
        judge = learned(mlp(64), _rows(codes[:FIT]), label[:FIT], seed + 77,
                        TINY if tiny else JUDGE_STEPS).module  # fmt: skip
        bits, by_scale = dict[str, float](), dict[str, float]()
        asked, distance = dict[str, float](), dict[str, float]()
        for arm, kinds in ARMS.items():
            tick(arm)
            net = _trained(kinds, codes[:FIT], label[:FIT], seed, TINY if tiny else STEPS)
            each = _bits(net, codes[FIT:], label[FIT:])
            bits[arm] = float(each.mean())
            by_scale |= {f"bits a code | {arm}, {side} x {side}": float(each[:, i == SCALE].mean())
                         for i, side in enumerate(SIDES)}  # fmt: skip
            made = _rows(sampled(net, label[FIT:], seed))
            asked[arm] = _accuracy(judge, made, label[FIT:])
            distance[arm] = _distance(judge, made, _rows(codes[FIT:]))
        tick("classes by lot")
        adds = {arm: sum(multiply_adds(kind) for kind in kinds) for arm, kinds in ARMS.items()}
        real = _rows(codes)
        return {
            "multiply-adds of mixing, share of full attention": adds["decoupled"] / adds["full"],
            "bits": bits["full"] - bits["decoupled"] + 0.02,
            "between": bits["within"] - bits["decoupled"],
            "near": bits["linear"] - bits["decoupled"],
            "asked": asked["decoupled"] - asked["within"],
            "samples": 1.1 - distance["decoupled"] / distance["full"],
            "by lot": by_lot(codes, seed, TINY if tiny else STEPS),
            **{f"bits a code | {arm}": v for arm, v in bits.items()},
            **by_scale,
            **{f"multiply-adds | {arm}": float(v) for arm, v in adds.items()},
            **{f"class asked for | {arm}": v for arm, v in asked.items()},
            "class asked for | fresh digits": _accuracy(judge, real[FIT:], label[FIT:]),
            **{f"Frechet distance | {arm}": v for arm, v in distance.items()},
            "Frechet distance | digits of training": _distance(judge, real[:FIT], real[FIT:]),
        }


def _rows(codes: Tensor) -> Tensor:
    """Return the pictures of codes, as rows of pixels in [0, 1]."""
    return read_back(codes)[-1].flatten(1).clamp(0, 1)


def _trained(
    kinds: tuple[str, ...], codes: Tensor, label: Tensor, seed: int, steps: int
) -> ScaleNet:
    net = drawn(lambda: ScaleNet(kinds), seed)

    def loss(rows: Tensor) -> Tensor:
        return cross_entropy(net(codes[rows], label[rows]).movedim(2, 1), codes[rows])

    minimise(loss, net.parameters(), len(codes), steps=steps, seed=seed, rate=RATE, batch=BATCH)
    return net.eval()


def by_lot(codes: Tensor, seed: int, steps: int) -> float:
    """Return the bits a code that a net saves of fresh digits by their classes by lot."""
    label, other = labels_by_lot(codes, 10, seed), labels_by_lot(codes, 10, seed + 1)
    net = _trained(ARMS["linear"], codes[:FIT], label[:FIT], seed, steps)
    own, dealt = (_bits(net, codes[FIT:], one[FIT:]) for one in (label, other))
    return float((dealt - own).mean())


@torch.no_grad()
def _bits(net: ScaleNet, codes: Tensor, label: Tensor) -> Tensor:
    """Return the bits of each code (picture, token)."""
    logits = net(codes, label).movedim(2, 1).double()
    return cross_entropy(logits, codes, reduction="none") / math.log(2)


@torch.no_grad()
def _accuracy(judge: nn.Module, rows: Tensor, label: Tensor) -> float:
    return float((judge(rows).argmax(1) == label).double().mean())


@torch.no_grad()
def _distance(judge: nn.Module, rows: Tensor, real: Tensor) -> float:
    """Return the Frechet distance of pictures in the judge's logits."""
    return float(Frechet(permutations=1).between(judge(rows), judge(real)).value)
