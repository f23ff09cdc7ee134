"""Channels reconstructed from the weights alone, against plain pruning and rounding."""

import math
from copy import deepcopy
from dataclasses import replace
from typing import Any, final

import torch
from torch import nn

from sonde.compress import DataFreeCompress, fidelity
from sonde_studies._shrunk import Shrunk, conv_net, log_ratio
from sonde_studies.arms import note, part
from sonde_studies.study import Claim, Figures, Study, Tick

SHARES, WIDTHS, EVERY, FIRST = (0.1, 0.3, 0.5), (3, 4, 6), ("*",), "4"
QUARTER, SIX, THREE, GROUP = 0.25, 6, 3, 32
"""Without a quarter of the channels six bits take as many bytes as three bits with all of them."""


@final
class WithoutDataStudy(Study):
    """Convolutional nets on digits with batch norm, with channels pruned or rounded or both.

    *Doubled* nets have a second convolution whose channels come in pairs, one a smaller multiple of
    the other: half of them can be rebuilt.
    """

    name = "without-data"
    title = "can weights alone rebuild what pruning and rounding take from channels?"
    paper = "bai2023udfc"
    fidelity = "the ridge is ours; three convolutions in place of deep nets"
    data = "digits: nets of three convolutions, 1,000 rows to learn from, 797 to judge"
    claims = (
        Claim("pruned", "With 30 % of channels left out, rebuilding makes answers diverge less.",
              "logarithm of the divergence of plain cuts over that with rebuilding",
              arms=("rebuilt", "plain")),
        Claim("half", "With half of them left out, too.",
              "logarithm of the divergence of plain cuts over that with rebuilding",
              arms=("rebuilt", "plain")),
        Claim("six bits", "At six bits it does.",
              "logarithm of the divergence of plain rounding over that with rebuilding",
              arms=("rebuilt", "plain")),
        Claim("four bits", "At four bits it does.",
              "logarithm of the divergence of plain rounding over that with rebuilding",
              arms=("rebuilt", "plain")),
        Claim("doubled", "Where channels come in pairs, half of them go at a tenth of the cost.",
              "logarithm of the divergence of plain cuts over that with rebuilding, less log 10",
              arms=("rebuilt", "plain")),
        Claim("both", "With a quarter of the channels left out and the rest at six bits, "
              "rebuilding both at once makes answers diverge less.",
              "logarithm of the divergence of plain cuts at six bits over that with rebuilding",
              arms=("at once", "neither rebuilt")),
        Claim("in turn", "Rebuilt at once, answers diverge less than if channels are rebuilt first "
              "and the narrower net is rounded and rebuilt then.",
              "logarithm of the divergence of one after the other over that of both at once",
              arms=("at once", "in turn")),
        Claim("equal bytes", "Rebuilt at once, it diverges less than all channels at three bits, "
              "which are rebuilt too.",
              "logarithm of the divergence at three bits over that of both at once",
              arms=("at once", "three bits")),
        Claim("doubled at six bits", "Where channels come in pairs, half of them go, and the rest "
              "of the layer is rounded to six bits, at a tenth of the cost.",
              "logarithm of the divergence of plain cuts at six bits over that with rebuilding, "
              "less log 10", arms=("rebuilt", "plain")),
    )  # fmt: skip
    null = Claim("none out", "Where no channel is left out, rebuilding changes no answer.",
                 "divergence in nats")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Prune and round, with and without reconstruction."""
        tick("a net")
        found = conv_net(seed, tiny)
        gains: dict[str, float] = {}
        for share in SHARES:
            tick(f"{share:.0%} left out")
            gains[f"gain | {share:.0%}"] = self._gain(seed, tiny, DataFreeCompress(share))
        for bits in WIDTHS:
            tick(f"{bits} bits")
            rule = DataFreeCompress(bits=bits, layers=EVERY)
            gains[f"gain | {bits} bits"] = self._gain(seed, tiny, rule)
        net = _doubled(found.model.module, seed)
        rule = DataFreeCompress(0.5, ridge=1e-6, layers=(FIRST,))
        plain = DataFreeCompress(0.5, refit=False, layers=(FIRST,))
        doubled = [found.divergence(one, net=net) for one in (plain, rule)]
        at_six = [found.divergence(replace(one, bits=SIX), net=net) for one in (plain, rule)]
        tick("both")
        apart = {name: self._divergence(found, name, *rules) for name, rules in _joint().items()}
        return {
            "pruned": gains["gain | 30%"],
            "half": gains["gain | 50%"],
            "six bits": gains["gain | 6 bits"],
            "four bits": gains["gain | 4 bits"],
            "doubled": log_ratio(doubled[0], 10 * max(doubled[1], 1e-12)),
            "both": log_ratio(apart["neither rebuilt"], apart["at once"]),
            "in turn": log_ratio(apart["in turn"], apart["at once"]),
            "equal bytes": log_ratio(apart["three bits"], apart["at once"]),
            "doubled at six bits": log_ratio(at_six[0], 10 * max(at_six[1], 1e-12)),
            "none out": found.divergence(DataFreeCompress(0.0)),
            **gains,
            **{f"divergence | {name}": kl for name, kl in apart.items()},
        }

    def _divergence(self, found: Shrunk, name: str, *rules: DataFreeCompress) -> float:
        """Return the divergence after some rewrites, and note the bytes of the layers' weights."""
        new: Any = found.model.module
        with part(name):
            for rule in rules:
                new = found.planned(rule, net=new).fold(new)
            note(bytes=_size(new, rules[-1].bits or 0))
        return fidelity(found.model, new, found.fresh).kl

    def _gain(self, seed: int, tiny: bool, rule: DataFreeCompress) -> float:
        found = conv_net(seed, tiny)
        with part("plain"):
            plain = found.divergence(replace(rule, refit=False))
        with part("rebuilt"):
            return log_ratio(plain, found.divergence(rule))


def _joint() -> dict[str, tuple[DataFreeCompress, ...]]:
    """Return each way to a net of equal bytes, as rewrites one after the other."""
    both = DataFreeCompress(QUARTER, SIX, GROUP, layers=EVERY)
    return {
        "neither rebuilt": (replace(both, refit=False),),
        "in turn": (DataFreeCompress(QUARTER), DataFreeCompress(None, SIX, GROUP, layers=EVERY)),
        "at once": (both,),
        "three bits": (DataFreeCompress(None, THREE, GROUP, layers=EVERY),),
    }


def _size(net: Any, bits: int) -> float:
    """Return the bytes of all weights at some bits, with two numbers of 16 bits for each group."""
    total = 0.0
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            total += _rows(layer.out_channels, layer.weight[0].numel(), bits)
        elif hasattr(layer, "out_features"):
            total += _rows(layer.out_features, layer.in_features, bits)
    return total


def _rows(n: int, width: int, bits: int) -> float:
    return n * (width * bits / 8 + 4 * math.ceil(width / GROUP))


def _doubled(net: Any, seed: int) -> Any:
    """Return a net whose second convolution has odd channels that are parts of even ones.

    Even channels are of one size, so that odd ones are the smallest.
    """
    new: Any = deepcopy(net)
    conv, norm = new[4], new[5]
    n = conv.out_channels // 2
    times = 0.2 + 0.6 * torch.rand(n, generator=torch.Generator().manual_seed(seed))
    size = conv.weight.detach().abs().flatten(1).sum(1) * norm.weight.detach().abs()
    size = size / (norm.running_var + norm.eps).sqrt()
    with torch.no_grad():
        for part in (norm.weight, norm.bias):
            part *= size.mean() / size
        for part in (norm.weight, norm.running_var, norm.running_mean, conv.bias, conv.weight):
            part[1::2] = part[::2]
        norm.weight[1::2] *= times
        norm.bias[1::2] = norm.bias[::2] * times
        conv.weight[1::2] *= 0.5
        conv.bias[1::2] *= 0.5
        norm.running_mean[1::2] *= 0.5
        norm.running_var[1::2] = 0.25 * (norm.running_var[1::2] + norm.eps) - norm.eps
    return new
