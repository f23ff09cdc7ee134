"""Test whether joint clipping of neighbouring layers pays, and whether entropy predicts it."""

from dataclasses import replace
from itertools import accumulate, pairwise
from typing import final

import torch
from scipy.stats import spearmanr  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from sonde.compress import RTN, BlockRounding
from sonde_studies._shrunk import Shrunk, log_ratio, shipped_net
from sonde_studies.arms import part
from sonde_studies.study import Claim, Figures, Study, Tick

GROUP, LOTS = 32, 4


@final
class RoundedRunsStudy(Study):
    """The shipped digit model at two and four bits, calibrated on rows chosen by a seed."""

    name = "rounded-runs"
    title = "does it pay to round neighbouring layers together, where entropy is high?"
    paper = "wang2024qvlm"
    fidelity = "images alone: no language model behind them, and no encoder that is tuned"
    data = "sonde:digits; 300 of its training images to calibrate, its test images to judge"
    claims = (
        Claim("joint", "At two bits runs diverge less than layers one by one.",
              "logarithm of the divergence of single stages over that of runs",
              arms=("runs", "single stages")),
        Claim("error", "At two bits errors behind runs, fitted to images, fall by a twentieth.",
              "0.95 less the ratio of summed errors, runs over single clips",
              arms=("runs", "single clips")),
        Claim("entropy", "Pairs of stages gain more together where the entropy between is higher.",
              "Spearman's correlation of gains and entropies"),
        Claim("cuts", "Runs that entropy cuts diverge less than runs of the same lengths by lot.",
              "logarithm of the ratio of divergences, mean over four lots",
              arms=("runs", "runs by lot")),
    )  # fmt: skip
    null = Claim("eight bits", "At eight bits, by the same code, it changes no answer.",
                 "share of the answers that change")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Round by runs, by single stages, and by randomly cut runs."""
        found = shipped_net(seed, tiny)
        layers = ("vit.layers.0.*",) if tiny else None
        rule = BlockRounding(2, GROUP, rows=8 if tiny else 32, layers=layers)
        tick("runs")
        plan = found.planned(rule)
        n = sum(name.startswith("entropy.") for name in plan.figures) + 1
        starts = [int(name[5:]) for name in plan.figures if name.startswith("gain.")]
        with part("runs"):
            joint = found.divergence(rule)
        with part("single stages"):
            single = found.divergence(replace(rule, most=1))
        tick("runs by lot")
        with part("runs by lot"):
            lots = [found.divergence(replace(rule, cuts=cuts)) for cuts in _lots(starts, n, seed)]
        tick("pairs")
        gains, entropies = _pairs(rule, found, n)
        rho = float(spearmanr(gains, entropies).statistic)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownArgumentType]
        with part("single clips"):
            clipped = found.divergence(RTN(2, GROUP, clip="mse", layers=layers))
        four = replace(rule, bits=4)
        return {
            "joint": log_ratio(single, joint),
            "error": 0.95 - plan.figures["loss"] / plan.figures["loss_start"],
            "entropy": rho,
            "cuts": sum(log_ratio(one, joint) for one in lots) / len(lots),
            "eight bits": found.changed(replace(rule, bits=8)),
            "gain of runs over stages | 4 bits": log_ratio(
                found.divergence(replace(four, most=1)), found.divergence(four)
            ),
            "divergence, runs | 2 bits": joint,
            "divergence, stages | 2 bits": single,
            "divergence, clips of groups | 2 bits": clipped,
        }


def _lots(starts: list[int], n: int, seed: int) -> list[list[int]]:
    """Return partitions with the same run lengths in other orders."""
    ends = sorted({0, *starts, n})
    lengths = torch.tensor([b - a for a, b in pairwise(ends)])
    draw = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(lengths), generator=draw) for _ in range(LOTS)]
    return [list(accumulate(lengths[order].tolist()))[:-1] for order in orders]


def _pairs(rule: BlockRounding, found: Shrunk, n: int) -> tuple[list[float], list[float]]:
    """Return each neighbouring pair's joint gain, and the entropy between the stages."""
    gains, entropies = list[float](), list[float]()
    for first in (0, 1):
        cuts = [i for i in range(1, n) if (i - first) % 2 == 0]
        told = found.planned(replace(rule, cuts=cuts)).figures
        for i in range(first, n - 1, 2):
            gains.append(told[f"gain.{i}"])
            entropies.append(told[f"entropy.{i + 1}"])
    return gains, entropies
