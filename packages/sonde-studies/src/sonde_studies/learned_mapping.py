"""Codes that change while codebooks are learned, against fixed codes."""

from typing import final

from sonde.compress import RTN, WeightCodebook
from sonde_studies._shrunk import log_ratio, wide_net
from sonde_studies.arms import note, part
from sonde_studies.study import Claim, Figures, Study, Tick

WIDTHS, STEPS, GROUP, LAYERS = (2, 3, 4), 40, 128, ("2", "4")


@final
class LearnedMappingStudy(Study):
    """Dense nets on digits, with two layers of 256 units at two to four bits."""

    name = "learned-mapping"
    title = "does it pay to learn which entry of a codebook a weight takes?"
    paper = "jlcm2024"
    fidelity = "errors of layers in place of the task; scores move by the paper's decreasing factor"
    data = "digits: nets of three hidden layers, 1,000 rows to learn from, 797 to judge"
    claims = (
        Claim("joint", "At two bits codes that are learned diverge less than codes that stand.",
              "logarithm of the divergence of learned codebooks alone over that of both",
              arms=("joint, 2 bits", "book, 2 bits")),
        Claim("more at two", "It gains more at two bits than at four.",
              "difference of logarithms",
              arms=("joint, 2 bits", "book, 2 bits")),
        Claim("groups", "Eight codebooks a layer diverge less than one, both learned, two bits.",
              "logarithm of the ratio of divergences",
              arms=("joint, 2 bits", "one codebook, 2 bits")),
        Claim("rounding",
              "It diverges less than rounding to the nearest, which reads no rows and is not "
              "learned.",
              "logarithm of the divergence of RTN over its own, two bits",
              arms=("joint, 2 bits", "rounding")),
    )  # fmt: skip
    null = Claim("eight bits", "At eight bits, by the same code, it costs nothing.",
                 "nats of the label, test rows")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Learn codebooks with and without learned codes, at three widths."""
        tick("a net")
        found = wide_net(seed, tiny)
        steps = 1 if tiny else STEPS
        kl: dict[str, float] = {}
        for bits in WIDTHS:
            tick(f"{bits} bits")
            for learn in ("joint", "book"):
                rule = WeightCodebook(bits, steps=steps, learn=learn, layers=LAYERS)
                with part(f"{learn}, {bits} bits"):
                    note(updates=steps)
                    kl[f"{learn} | {bits} bits"] = found.divergence(rule)
        with part("one codebook, 2 bits"):
            note(updates=steps)
            one = found.divergence(WeightCodebook(2, 1, steps, layers=LAYERS))
        with part("rounding"):
            note(updates=0)
            rtn = found.divergence(RTN(2, GROUP, layers=LAYERS))
        gain = {bits: log_ratio(kl[f"book | {bits} bits"], kl[f"joint | {bits} bits"])
                for bits in WIDTHS}  # fmt: skip
        return {
            "joint": gain[2],
            "more at two": gain[2] - gain[4],
            "groups": log_ratio(one, kl["joint | 2 bits"]),
            "rounding": log_ratio(rtn, kl["joint | 2 bits"]),
            "eight bits": found.dearer(WeightCodebook(8, steps=steps, layers=LAYERS)),
            "divergence, one codebook | 2 bits": one,
            "divergence, rounding | 2 bits": rtn,
            **{f"divergence, {name}": value for name, value in kl.items()},
        }
