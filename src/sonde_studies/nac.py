"""Does coverage of neuron states tell unknown inputs; which layers, how many rows it needs."""

from typing import final

from sonde.detect import MSP, NAC, Energy
from sonde_studies._digits import Digits, digits
from sonde_studies._separation import area, fitted_on, mean_score, scores_of
from sonde_studies.study import Claim, Figures, Study, Tick

LAST, EARLY = "body:out", "early:out"
READING = {"sites": [EARLY, LAST], "objective": "kl_uniform"}
SHARES = (0.05, 0.01)


@final
class NACStudy(Study):
    """Neuron activation coverage on digits, against scores of the logits."""

    name = "nac"
    title = "does coverage of neuron states tell unknown inputs from known ones?"
    paper = "liu2024nac"
    fidelity = (
        "official formula, alpha from the fitted rows; the original chose alpha, bins and layers "
        "on unusual validation data"
    )
    data = "scikit-learn's digits: six known, four near; uniform noise as far; a net 64-128-64-6"
    claims = (
        Claim(
            "far: NAC over MSP",
            "Coverage at the last hidden layer beats the largest probability on far inputs.",
            "difference of AUROC",
        ),
        Claim(
            "far: NAC over energy",
            "Coverage at the last hidden layer beats the energy on far inputs.",
            "difference of AUROC",
        ),
        Claim(
            "near: two layers over the last",
            "Adding an earlier layer helps (mean of near and far).",
            "difference of AUROC",
        ),
        *(
            Claim(
                f"{share:.0%} of the rows",
                f"{share:.0%} of the rows are enough, with as many bins as rows: they lose less "
                "than .02 on near inputs.",
                "difference of AUROC",
                above=-0.02,
            )
            for share in SHARES
        ),
    )
    null = Claim("null", "Fresh known digits against fresh known digits.", "AUROC", above=0.5)

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train, fit, score."""
        tick("training")
        d = digits(seed, tiny=tiny)
        tick("scoring")
        found = {
            **_areas(d, "NAC", NAC()),
            **{f"MSP | {k}": v for k, v in _logit_areas(d, MSP()).items()},
            **{f"energy | {k}": v for k, v in _logit_areas(d, Energy()).items()},
        }
        few = {share: _few(d, share) for share in SHARES}
        both = (found["NAC both | near"] + found["NAC both | far"]) / 2
        last = (found["NAC last | near"] + found["NAC last | far"]) / 2
        return {
            "far: NAC over MSP": found["NAC last | far"] - found["MSP | far"],
            "far: NAC over energy": found["NAC last | far"] - found["energy | far"],
            "near: two layers over the last": both - last,
            **{f"{s:.0%} of the rows": f - found["NAC last | near"] for s, f in few.items()},
            "null": found.pop("NAC last | null"),
            "accuracy": d.accuracy,
            **found,
        }


def _areas(d: Digits, name: str, detector: NAC, rows: int | None = None) -> dict[str, float]:
    fitted = fitted_on(d.model, d.fit[:rows], detector, **READING)
    score = {
        part: scores_of(fitted, d.model, items)
        for part, items in (("held", d.held), ("test", d.test), ("near", d.near), ("far", d.far))
    }
    found: dict[str, float] = {}
    for part in ("near", "far", "held"):
        where = {
            site: (score["test"]["nac", site], score[part]["nac", site]) for site in (EARLY, LAST)
        }
        both = [mean_score([pair[side] for pair in where.values()]) for side in (0, 1)]
        shown = "null" if part == "held" else part
        found |= {
            f"{name} last | {shown}": area(*where[LAST]),
            f"{name} both | {shown}": area(*both),
        }
    return found


def _few(d: Digits, share: float) -> float:
    """Return what a share of the rows tells of near inputs, with no more bins than rows."""
    rows = max(4, round(share * len(d.fit)))
    n_bins = min(NAC().n_bins, rows // 2 * 2)
    return _areas(d, "few", NAC(n_bins=n_bins), rows)["few last | near"]


def _logit_areas(d: Digits, detector: MSP | Energy) -> dict[str, float]:
    fitted = fitted_on(d.model, d.fit, detector, sites=[LAST])
    usual, near, far = (
        next(iter(scores_of(fitted, d.model, items).values())) for items in (d.test, d.near, d.far)
    )
    return {"near": area(usual, near), "far": area(usual, far)}
