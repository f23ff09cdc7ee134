"""Features before and after a head's weights, in a net that was pretrained on ImageNet."""

from typing import final

from sonde_studies._pretrained_pictures import open_garments
from sonde_studies._separation import area
from sonde_studies.costarr import likeness, scored_arms
from sonde_studies.study import Claim, Figures, Study, Tick

FIGURE = "dAUROC, mean of unknown garments and stamps"


@final
class COSTARRPretrainedStudy(Study):
    """Six garments known to a tuned EfficientNet-lite0; unknown are other garments and stamps."""

    name = "costarr-pretrained"
    title = "do both kinds of features tell unknown classes best in a net of ImageNet?"
    paper = "costarr2025"
    fidelity = (
        "reconstructed formula, from the ingredients that the abstract names; a head of six "
        "classes, tuned with the last block, in place of the head of ImageNet's thousand"
    )
    data = (
        "EfficientNet-lite0 at 96 x 96; six of ten garments of Fashion-MNIST known, 600 to tune "
        "on, 250 to judge; 250 other garments and 250 stamps of Tux Paint unknown"
    )
    place = "efficientnet"
    claims = (
        Claim("both over pre", "Both beat the features before the head alone.", FIGURE),
        Claim("both over post", "Both beat the attenuated features alone.", FIGURE),
        Claim(
            "both over max_logit",
            "Features before the head and attenuated ones together beat the largest logit.",
            FIGURE,
        ),
        Claim("minmax over none", "The factor of the winning logit's range helps.", FIGURE),
        Claim("minmax over max_logit", "With this factor they beat the largest logit.", FIGURE),
    )
    null = Claim("null", "Fresh known images against fresh known images.", "AUROC", above=0.5)

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Score every setting of the method, and two scores of logits."""
        tick("tuning")
        d = open_garments(seed, tiny)
        tick("scoring")
        scored = scored_arms(d)
        found = {
            f"{name} | {part}": area(parts["test"], parts[part])
            for name, parts in scored.items()
            for part in ("near", "far")
        }
        mean = {name: (found[f"{name} | near"] + found[f"{name} | far"]) / 2 for name in scored}
        ours, best = mean["both, none"], mean["both, minmax"]
        usual = scored["both, none"]
        return {
            "both over pre": ours - mean["pre, none"],
            "both over post": ours - mean["post, none"],
            "both over max_logit": ours - mean["max_logit"],
            "minmax over none": best - ours,
            "minmax over max_logit": best - mean["max_logit"],
            "null": area(usual["test"], usual["held"]),
            "accuracy": d.accuracy,
            "rank correlation of pre and post": likeness(scored, "pre, none", "post, none"),
            **found,
        }
