"""One net and many definitions of normal, given at test time.

The net has learned to name digits; which of them are normal it was never told.
"""

from typing import final

from sonde_studies._recipe_data import items_of, learned, mlp, shuffled_digits
from sonde_studies.recipes.defined_anomaly import BLIND, NAMED, OTHER, REFIT, defined_anomaly
from sonde_studies.study import Claim, Figures, Study, Tick

FIT, TINY, STEPS, FEW = 500, 20, 200, 200
KNOWN = 6


@final
class DefinedAnomalyStudy(Study):
    """Eight definitions of five normal digits; the net was trained on ten digits or on six."""

    name = "defined-anomaly"
    title = "can one net serve definitions of normal that change?"
    fidelity = "a definition is a set of classes, not a sentence; nothing is trained for it"
    data = "digits: 500 to train on, 1,297 for the recipe"
    claims = (
        Claim("given", "With the definition given, anomalies are told better than without.",
              "mean AUROC less that of a detector without a definition"),
        Claim("anew", "As well as by a detector that is fitted for each, to two points.",
              "mean AUROC less that of detectors fitted anew, and 0.02"),
        Claim("unseen", "Also if the net never saw four of the ten digits, to five points.",
              "mean AUROC of a net of six digits less that of a net of ten, and 0.05"),
    )  # fmt: skip
    null = Claim("other", "The definition of another question tells nothing on average.",
                 "mean AUROC", above=0.5)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train two nets, and run the recipe on both."""
        x, label = shuffled_digits(seed)
        rest = slice(FIT, FIT + FEW if tiny else None)
        items, found = items_of(x[rest], label[rest]), dict[str, dict[str, float]]()
        for name, few in (("ten digits", 10), ("six digits", KNOWN)):
            tick(name)
            own = label[:FIT] < few
            net = learned(mlp(64), x[:FIT][own], label[:FIT][own], seed, TINY if tiny else STEPS)
            answer = defined_anomaly(
                net, items, site="3", definitions=16, seed=seed, progress=False
            )
            found[name] = {
                arm: float(answer.facts[f"mean, {arm}"]) for arm in (NAMED, BLIND, REFIT, OTHER)
            }
        ten = found["ten digits"]
        return {
            "given": ten[NAMED] - ten[BLIND],
            "anew": ten[NAMED] - ten[REFIT] + 0.02,
            "unseen": found["six digits"][NAMED] - ten[NAMED] + 0.05,
            "other": ten[OTHER],
            **{f"{name} | {arm}": v for name, row in found.items() for arm, v in row.items()},
        }
