"""Test whether the means of unused latents are correlated, unlike sampled codes.

A variational autoencoder of ten latents on digits, at several weights of the divergence.
"""

from typing import final

import torch
from torch import Tensor

from sonde import editing
from sonde.edit import DropPassive
from sonde.measure import ActiveVariables, active_variables, v_information
from sonde_studies._digit_vae import DigitVAE, Posterior, trained_vae
from sonde_studies._layers import split
from sonde_studies.study import Claim, Figures, Study, Tick

STEPS = 2500
BETAS = (0.25, 1.0, 2.0)
PASSIVE, ACTIVE = 0, 2


@final
class ActiveVariablesStudy(Study):
    """Latents sorted by use, and the accuracy that a probe loses without some of them."""

    name = "active-variables"
    title = "are means of unused latents correlated where sampled codes are not?"
    paper = "bonheme2023more"
    fidelity = (
        "kinds of latents by a threshold of 0.05 nats at each row (ours); a small dense net; the "
        "noise of pixels is fixed, so that the weight of the divergence has a meaning"
    )
    data = "scikit-learn's digits; ten latents, read on digits not trained on"
    claims = (
        Claim(
            "passive, means",
            "The means of passive latents are more correlated with another than their codes are.",
            "largest absolute correlation, mean over passive latents: means less codes, beta 1",
        ),
        Claim(
            "active, means",
            "The difference is larger for passive latents than for active ones.",
            "difference of differences, beta 1",
        ),
        Claim(
            "more with beta",
            f"A larger beta ({BETAS[-1]:g} against {BETAS[0]:g}) leaves more latents passive.",
            "difference of numbers",
        ),
        Claim(
            "dropped",
            "A linear probe on codes keeps its accuracy to 2 points without the passive ones.",
            "accuracy without less with, and 0.02, beta 1",
        ),
        Claim(
            "dropped, pixels",
            "With the passive latents of sampled codes dropped, the decoder's pixels are no worse.",
            "mean squared error with all less that without the passive ones, relative, beta 1",
            above=-0.02,
        ),
    )
    null = Claim(
        "halves",
        "Two halves of the digits: latents are off the prior equally often.",
        "difference of mean shares of rows, beta 1",
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
            kinds = active_variables(*posterior).kind
            figures[f"passive | beta {beta:g}"] = float((kinds == PASSIVE).sum())
            figures[f"active | beta {beta:g}"] = float((kinds == ACTIVE).sum())
            if beta == 1.0:
                code = posterior.sample(torch.Generator().manual_seed(seed))
                found = _found(posterior, code, d.label_test)
                found |= _without_passive(net, code, tuple(kinds.tolist()), d.x_test)
        fewest, most = (figures[f"passive | beta {b:g}"] for b in (BETAS[0], BETAS[-1]))
        return {**found, "more with beta": most - fewest, **figures}


def _found(posterior: Posterior, code: Tensor, label: Tensor) -> dict[str, float]:
    """Return correlations by kind of latent, and accuracies of probes on codes."""
    result = active_variables(*posterior)
    apart = {}
    for name, kind in (("passive", PASSIVE), ("active", ACTIVE)):
        for codes in ("mean", "sampled"):
            r = getattr(result, f"{codes}_correlation").abs().fill_diagonal_(0).amax(1)
            mine = r[result.kind == kind]
            apart[f"{name} | {codes}"] = float(mine.mean()) if len(mine) else 0.0
    probes = {
        "all": v_information(code, label),
        "without": v_information(code[:, result.kind != PASSIVE], label),
    }
    halves = [
        ActiveVariables().fit(posterior.mu[i::2], y=posterior.log_variance[i::2]) for i in (0, 1)
    ]
    shift = {
        name: apart[f"{name} | mean"] - apart[f"{name} | sampled"] for name in ("passive", "active")
    }
    return {
        "passive, means": shift["passive"],
        "active, means": shift["passive"] - shift["active"],
        "dropped": probes["without"].accuracy - probes["all"].accuracy + 0.02,
        "halves": float(halves[0].on.mean() - halves[1].on.mean()),
        **{f"largest correlation, {name}": v for name, v in apart.items()},
        **{f"accuracy of a probe | {name}": p.accuracy for name, p in probes.items()},
    }


@torch.no_grad()
def _without_passive(
    net: DigitVAE, code: Tensor, kind: tuple[int, ...], x: Tensor
) -> dict[str, float]:
    """Return the change of decoded pixels if passive latents are dropped."""
    errors = {"all": float((net.decode(code) - x).square().mean())}
    for name, kinds in {"without": kind, "none": (PASSIVE,) * len(kind)}.items():
        with editing(net.decode, DropPassive(kinds), "0:in"):
            errors[name] = float((net.decode(code) - x).square().mean())
    gain = (errors["all"] - errors["without"]) / errors["all"]
    return {
        "dropped, pixels": gain,
        **{f"error of pixels | {name}": value for name, value in errors.items()},
    }
