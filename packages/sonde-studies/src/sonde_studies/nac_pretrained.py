"""Detection of unknown inputs by neuron coverage, in a net that was pretrained on ImageNet."""

from typing import final

from sonde.detect import MSP, NAC, Energy
from sonde_studies._pretrained_pictures import open_garments
from sonde_studies.arms import note_for
from sonde_studies.nac import areas_of, logit_areas
from sonde_studies.study import Claim, Figures, Study, Tick


@final
class NACPretrainedStudy(Study):
    """Coverage at one and at two layers of a tuned EfficientNet-lite0, against logit scores."""

    name = "nac-pretrained"
    title = "does coverage tell unknown pictures from known ones in a net of ImageNet?"
    paper = "liu2024nac"
    fidelity = (
        "official formula, alpha from the fitted rows; the original chose alpha, bins and layers "
        "on unusual validation data; last two of 16 blocks"
    )
    data = (
        "EfficientNet-lite0 at 96 x 96; six of ten garments of Fashion-MNIST known, 600 to tune "
        "on, 250 to judge; near: 250 other garments; far: 250 stamps of Tux Paint"
    )
    place = "efficientnet"
    claims = (
        Claim("far: NAC over MSP",
              "On far pictures coverage at the last hidden layer, fitted to training rows, beats "
              "the largest probability.",
              "difference of AUROC",
              arms=("NAC, last layer", "logits")),
        Claim("far: NAC over energy",
              "On far pictures coverage, fitted to training rows, beats the energy, which reads "
              "no rows.",
              "difference of AUROC",
              arms=("NAC, last layer", "logits")),
        Claim("near: NAC over MSP",
              "On near pictures it beats the largest probability, which reads no rows.",
              "difference of AUROC",
              arms=("NAC, last layer", "logits")),
        Claim("two layers over the last", "Adding an earlier layer helps.",
              "difference of AUROC, mean of near and far",
              arms=("NAC, two layers", "NAC, last layer")),
    )  # fmt: skip
    null = Claim("null", "Fresh known images against fresh known images.", "AUROC", above=0.5)

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Fit and score."""
        tick("tuning")
        d = open_garments(seed, tiny)
        tick("scoring")
        found = {
            **areas_of(d, "NAC", NAC()),
            **{f"MSP | {k}": v for k, v in logit_areas(d, MSP()).items()},
            **{f"energy | {k}": v for k, v in logit_areas(d, Energy()).items()},
        }
        for name, rows in (("NAC, last layer", d.fit), ("NAC, two layers", d.fit), ("logits", ())):
            note_for(name, rows=len(rows))
        both, last = (
            (found[f"NAC {at} | near"] + found[f"NAC {at} | far"]) / 2 for at in ("both", "last")
        )
        return {
            "far: NAC over MSP": found["NAC last | far"] - found["MSP | far"],
            "far: NAC over energy": found["NAC last | far"] - found["energy | far"],
            "near: NAC over MSP": found["NAC last | near"] - found["MSP | near"],
            "two layers over the last": both - last,
            "null": found["NAC last | null"],
            "accuracy": d.accuracy,
            **found,
        }
