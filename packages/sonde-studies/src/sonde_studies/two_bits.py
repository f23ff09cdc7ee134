"""Scales and codes optimised separately: the gain at two bits and at four."""

from typing import Any, final

import numpy as np
import torch
from torch import Tensor

import sonde
from sonde.compress import GPTQ, RTN, CoordinateRounding, DecoupleQ, fidelity, layer_grams
from sonde.data import open_inputs
from sonde_studies._shrunk import shipped_net
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick

ROWS, TINY, GROUP = 300, 40, 32


@final
class TwoBitsStudy(Study):
    """The shipped digit model at two to four bits, calibrated on rows chosen by a seed."""

    name = "two-bits"
    title = "does it pay to fit scales as variables of their own at two bits?"
    paper = "guo2024decoupleq"
    fidelity = "codes by GPTQ and coordinates, not projected gradients; no training of norms"
    data = "sonde:digits; 300 of its training images to calibrate, its test images to judge"
    claims = (
        Claim("gptq", "At two bits grids and codes that are fitted in turn diverge less than "
              "GPTQ.",
              "divergence of GPTQ over its own, logarithm",
              arms=("DecoupleQ, 2 bits", "GPTQ, 2 bits")),
        Claim("apart", "It diverges less than codes by coordinates on grids that are not fitted.",
              "divergence of CoordinateRounding over its own, two bits, logarithm",
              arms=("DecoupleQ, 2 bits", "CoordinateRounding, 2 bits")),
        Claim("rtn",
              "At two bits GPTQ, which reads rows, diverges less than rounding to the nearest.",
              "divergence of RTN over that of GPTQ, logarithm",
              arms=("GPTQ, 2 bits", "RTN, 2 bits")),
        Claim("error", "At two bits its errors of layers are a tenth lower than those of GPTQ.",
              "0.9 less the ratio of summed errors",
              arms=("DecoupleQ, 2 bits", "GPTQ, 2 bits")),
        Claim("less at four", "At four bits it gains less over GPTQ than at two.",
              "difference of logarithms",
              arms=("DecoupleQ, 2 bits", "GPTQ, 2 bits")),
    )  # fmt: skip
    null = Claim("eight bits", "At eight bits, by the same code, it changes no answer.",
                 "share of the answers that change")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Round by three methods at three widths."""
        model: Any = sonde.load("sonde:digits", device="cpu")
        x = _images(model, "sonde:digits/train")
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
        rows = x[order[: TINY if tiny else ROWS]]
        fresh = open_inputs(model, "sonde:digits/test")
        grams = layer_grams(model, open_inputs(model, rows), progress=False)
        kl: dict[str, float] = {}
        lost: dict[str, float] = {}
        for bits in (2, 4):
            for rule in (RTN(bits, GROUP), GPTQ(bits, GROUP), DecoupleQ(bits, GROUP)):
                name = f"{type(rule).__name__} | {bits} bits"
                tick(name)
                given = {} if isinstance(rule, RTN) else {"calibration": grams}
                note_for(f"{type(rule).__name__}, {bits} bits", rows=len(rows) if given else 0)
                plan = rule.plan(model, given)
                kl[name] = fidelity(model, plan.fold(model), fresh).kl
                lost[name] = plan.figures.get("loss", float("nan"))
        tick("coordinates, 2 bits")
        note_for("CoordinateRounding, 2 bits", rows=len(rows))
        rule, name = CoordinateRounding(2, GROUP), "CoordinateRounding | 2 bits"
        kl[name] = fidelity(model, rule.plan(model, {"calibration": grams}).fold(model), fresh).kl

        def ratio(a: str, b: str, bits: int) -> float:
            return float(np.log(kl[f"{a} | {bits} bits"] / kl[f"{b} | {bits} bits"]))

        gain = ratio("GPTQ", "DecoupleQ", 2)
        return {
            "gptq": gain,
            "apart": ratio("CoordinateRounding", "DecoupleQ", 2),
            "rtn": ratio("RTN", "GPTQ", 2),
            "error": 0.9 - lost["DecoupleQ | 2 bits"] / lost["GPTQ | 2 bits"],
            "less at four": gain - ratio("GPTQ", "DecoupleQ", 4),
            "eight bits": shipped_net(seed, tiny).changed(DecoupleQ(8, GROUP)),
            **{f"divergence, {name}": v for name, v in kl.items()},
        }


def _images(model: Any, name: str) -> Tensor:
    """Return the images of a data set in the model's input form."""
    inputs = open_inputs(model, name)
    return torch.cat([b.kwargs["pixel_values"] for b in inputs.batches(0, len(inputs))])
