"""Detection of unknown inputs by neuron coverage; best layers and necessary rows.

A hundredth of 500 digits would be fewer rows than bins, and 4 bins are full whatever is read; the
shares are therefore of noisy copies. What came out (ten seeds): 250 of 5,000 rows lose nothing on
near inputs, and 50, as many as bins, .014 of .896.
"""

from typing import final

import torch

from sonde import InputError
from sonde.detect import MSP, NAC, Energy
from sonde_studies._digits import Digits, Items, digits
from sonde_studies._separation import area, fitted_on, mean_score, scores_of
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick

LAST, EARLY = "body:out", "early:out"
READING = {"sites": [EARLY, LAST], "objective": "kl_uniform"}
SHARES = (0.05, 0.01)
COPIES, NOISE = 10, 0.1


@final
class NACStudy(Study):
    """Neuron activation coverage on digits, against logit scores."""

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
            "Coverage at the last hidden layer, fitted to training rows, beats the largest "
            "probability on far inputs.",
            "difference of AUROC",
            arms=("NAC, last layer", "logits"),
        ),
        Claim(
            "far: NAC over energy",
            "Coverage at the last hidden layer, fitted to training rows, beats the energy on far "
            "inputs.",
            "difference of AUROC",
            arms=("NAC, last layer", "logits"),
        ),
        Claim(
            "near: two layers over the last",
            "Adding an earlier layer helps (mean of near and far).",
            "difference of AUROC",
            arms=("NAC, two layers", "NAC, last layer"),
        ),
        *(
            Claim(
                f"{share:.0%} of the rows",
                f"{share:.0%} of {COPIES} noisy copies of each row are enough, no fewer than bins: "
                "they lose less than .02 on near inputs against all copies.",
                "difference of AUROC",
                above=-0.02,
                arms=(f"{share:.0%} of the copies", "100% of the copies"),
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
            **areas_of(d, "NAC", NAC()),
            **{f"MSP | {k}": v for k, v in logit_areas(d, MSP()).items()},
            **{f"energy | {k}": v for k, v in logit_areas(d, Energy()).items()},
        }
        read = {"NAC, last layer": len(d.fit), "NAC, two layers": len(d.fit), "logits": 0}
        read |= {f"{s:.0%} of the copies": round(s * COPIES * len(d.fit)) for s in (1.0, *SHARES)}
        for name, rows in read.items():
            note_for(name, rows=rows)
        few = {share: _few(d, share, seed) for share in (1.0, *SHARES)}
        both = (found["NAC both | near"] + found["NAC both | far"]) / 2
        last = (found["NAC last | near"] + found["NAC last | far"]) / 2
        return {
            "far: NAC over MSP": found["NAC last | far"] - found["MSP | far"],
            "far: NAC over energy": found["NAC last | far"] - found["energy | far"],
            "near: two layers over the last": both - last,
            **{f"{s:.0%} of the rows": few[s] - few[1.0] for s in SHARES},
            "null": found.pop("NAC last | null"),
            "accuracy": d.accuracy,
            **{f"{s:.0%} of the copies | near": f for s, f in few.items()},
            **found,
        }


def areas_of(d: Digits, name: str, detector: NAC, rows: Items | None = None) -> dict[str, float]:
    """Return AUROCs of coverage, at the last layer and at both, on each part.

    Parameters
    ----------
    d : Digits
    name : str
        Arm of the figures.
    detector : NAC
    rows : list of dict, optional
        Fit on these in place of the rows that trained the net.
    """
    fitted = fitted_on(d.model, d.fit if rows is None else rows, detector, **READING)
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


def _few(d: Digits, share: float, seed: int) -> float:
    """Return the AUROC on near inputs with a fraction of noisy training rows."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(COPIES * len(d.fit), generator=draw).tolist()
    rows = [
        {
            **d.fit[i % len(d.fit)],
            "x": (x := d.fit[i % len(d.fit)]["x"]) + NOISE * torch.randn(x.shape, generator=draw),
            "id": f"copy{i}",
        }
        for i in order[: round(share * len(order))]
    ]
    if len(rows) < NAC().n_bins:
        raise InputError(f"nac: expected rows for {NAC().n_bins} bins, got {len(rows)}.")
    return areas_of(d, "few", NAC(), rows)["few last | near"]


def logit_areas(d: Digits, detector: MSP | Energy) -> dict[str, float]:
    """Return AUROCs of a score of logits on near and far inputs."""
    fitted = fitted_on(d.model, d.fit, detector, sites=[LAST])
    usual, near, far = (
        next(iter(scores_of(fitted, d.model, items).values())) for items in (d.test, d.near, d.far)
    )
    return {"near": area(usual, near), "far": area(usual, far)}
