"""Test whether the means of unused latents repeat the used ones, and what is lost without them.

A variational autoencoder of ten latents on digits, at several weights of the divergence. Kinds of
latents are found on the digits that trained it, all else on others.
"""

import math
from typing import final

import torch
from torch import Tensor

from sonde import editing
from sonde.edit import DropPassive
from sonde.measure import active_variables, v_information
from sonde_studies._digit_vae import DigitVAE, Posterior, trained_vae
from sonde_studies._layers import split
from sonde_studies.arms import note_for
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick

STEPS = 2500
BETAS = (0.25, 1.0, 2.0)
PASSIVE, ACTIVE = 0, 2


@final
class ActiveVariablesStudy(Study):
    """Latents sorted by use, and the accuracy that a probe loses without some of them."""

    name = "active-variables"
    title = "do the means of unused latents repeat the used ones, and can they be dropped?"
    paper = "bonheme2023more"
    fidelity = (
        "kinds of latents by a threshold of 0.05 nats at each row (ours); a small dense net; the "
        "noise of pixels is fixed, so that the weight of the divergence has a meaning"
    )
    data = "scikit-learn's digits; ten latents, sorted on the digits trained on, judged on others"
    claims = (
        Claim(
            "passive, means",
            "Means of passive latents are more correlated with those of active ones than means of "
            "active latents are with each other.",
            "mean absolute correlation, passive with active less active with active, beta 1",
            arms=("passive, means", "active, means"),
        ),
        Claim(
            "means over drawn",
            "Means of passive latents are more correlated with active ones than their drawn codes, "
            "as their spread alone implies.",
            "mean absolute correlation of passive with active, means less drawn codes, beta 1",
            arms=("passive, means", "passive, drawn codes"),
        ),
        Claim(
            "cause",
            "Without passive latents means are no more correlated than drawn codes, to 0.02.",
            "0.02 less the mean absolute correlation of active latents, means less drawn codes, "
            "beta 1",
            arms=("active, means", "active, drawn codes"),
        ),
        Claim(
            "dropped, means",
            "A linear probe on standardised means keeps its accuracy to 2 points without the "
            "passive ones.",
            "accuracy without less with, and 0.02, beta 1",
            arms=("means, without", "means, all"),
        ),
        Claim(
            "more with beta",
            f"A larger beta ({BETAS[-1]:g} against {BETAS[0]:g}) leaves more latents passive.",
            "difference of numbers",
            arms=("beta 2", "beta 0.25"),
        ),
        Claim(
            "dropped",
            "A linear probe on drawn codes keeps its accuracy to 2 points without the passive "
            "ones.",
            "accuracy without less with, and 0.02, beta 1",
            arms=("drawn codes, without", "drawn codes, all"),
        ),
        Claim(
            "dropped, pixels",
            "With the passive latents of sampled codes dropped, the decoder's pixels are no worse.",
            "mean squared error with all less that without the passive ones, relative, beta 1",
            above=-0.02,
            arms=("pixels, without", "pixels, all"),
        ),
    )
    null = Claim(
        "lots",
        "A linear probe on standardised means tells no labels by lot of other rows.",
        "accuracy with all latents, beta 1, less 0.1",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train at each beta and measure the latents."""
        d = split(seed, 1200)
        found: dict[str, float] = {}
        figures: dict[str, float] = {}
        for beta in BETAS:
            tick(f"beta {beta:g}")
            net = trained_vae(d.x, beta, seed, 60 if tiny else STEPS)
            with torch.no_grad():
                posterior = net.posterior(d.x_test)
                kinds = active_variables(*net.posterior(d.x)).kind
            figures[f"passive | beta {beta:g}"] = float((kinds == PASSIVE).sum())
            figures[f"active | beta {beta:g}"] = float((kinds == ACTIVE).sum())
            if beta == 1.0:
                code = posterior.sample(torch.Generator().manual_seed(seed))
                found = _found(posterior, code, kinds, d.label_test)
                found["lots"] = by_lot(posterior.mu, d.x_test, seed)
                found |= _without_passive(net, code, tuple(kinds.tolist()), d.x_test)
        fewest, most = (figures[f"passive | beta {b:g}"] for b in (BETAS[0], BETAS[-1]))
        return {**found, "more with beta": most - fewest, **figures}


def _found(posterior: Posterior, code: Tensor, kind: Tensor, label: Tensor) -> dict[str, float]:
    """Return correlations by kind of latent, and accuracies of probes on means and drawn codes."""
    codes = {"means": _standardised(posterior.mu), "drawn codes": code}
    correlation, right = dict[str, float](), dict[str, float]()
    for name, z in codes.items():
        r = torch.corrcoef(z.T).abs().fill_diagonal_(math.nan)[:, kind == ACTIVE]
        for of, which in (("passive", PASSIVE), ("active", ACTIVE)):
            pairs = r[kind == which]
            note_for(f"{of}, {name}", rows=len(z))
            correlation[f"{of} | {name}"] = float(pairs.nanmean().nan_to_num())
        for kept, some in (("all", kind >= PASSIVE), ("without", kind != PASSIVE)):
            note_for(f"{name}, {kept}", rows=len(z))
            right[f"{kept} | {name}"] = v_information(z[:, some], label).accuracy
    return {
        "passive, means": correlation["passive | means"] - correlation["active | means"],
        "means over drawn": correlation["passive | means"] - correlation["passive | drawn codes"],
        "cause": 0.02 - (correlation["active | means"] - correlation["active | drawn codes"]),
        "dropped, means": right["without | means"] - right["all | means"] + 0.02,
        "dropped": right["without | drawn codes"] - right["all | drawn codes"] + 0.02,
        **{f"correlation with active, {name}": v for name, v in correlation.items()},
        **{f"accuracy of a probe, {name}": v for name, v in right.items()},
    }


def by_lot(mu: Tensor, x: Tensor, seed: int) -> float:
    """Return the accuracy of the probe of means on labels by lot, less that of chance."""
    return v_information(_standardised(mu), labels_by_lot(x, 10, seed)).accuracy - 0.1


def _standardised(mu: Tensor) -> Tensor:
    return (mu - mu.mean(0)) / mu.std(0).clamp(min=1e-9)


@torch.no_grad()
def _without_passive(
    net: DigitVAE, code: Tensor, kind: tuple[int, ...], x: Tensor
) -> dict[str, float]:
    """Return the change of decoded pixels if passive latents are dropped."""
    note_for("pixels, all", rows=len(x))
    errors = {"all": float((net.decode(code) - x).square().mean())}
    for name, kinds in {"without": kind, "none": (PASSIVE,) * len(kind)}.items():
        note_for(f"pixels, {name}", rows=len(x))
        with editing(net.decode, DropPassive(kinds), "0:in"):
            errors[name] = float((net.decode(code) - x).square().mean())
    gain = (errors["all"] - errors["without"]) / errors["all"]
    return {
        "dropped, pixels": gain,
        **{f"error of pixels | {name}": value for name, value in errors.items()},
    }
