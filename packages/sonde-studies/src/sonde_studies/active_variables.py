"""Test whether the means of unused latents are correlated, unlike sampled codes.

A variational autoencoder of ten latents on digits, at several weights of the divergence.
"""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from sonde import editing
from sonde.edit import DropPassive
from sonde.measure import ActiveVariables, active_variables, v_information
from sonde_studies._layers import BATCH, PIXELS, split
from sonde_studies.study import Claim, Figures, Study, Tick

LATENTS, WIDTH, STEPS, RATE = 10, 128, 2500, 2e-3
BETAS = (0.25, 1.0, 2.0)
PASSIVE, ACTIVE = 0, 2
PIXEL_NOISE = 0.3


class _VAE(nn.Module):
    """A VAE: means and log-variances of latents, and decoded pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Linear(PIXELS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2 * LATENTS)
        )
        self.decode = nn.Sequential(nn.Linear(LATENTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, PIXELS))


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
            net = _trained(d.x, beta, seed, 60 if tiny else STEPS)
            mu, log_variance = _posterior(net, d.x_test)
            kinds = active_variables(mu, log_variance).kind
            figures[f"passive | beta {beta:g}"] = float((kinds == PASSIVE).sum())
            figures[f"active | beta {beta:g}"] = float((kinds == ACTIVE).sum())
            if beta == 1.0:
                found = _found(mu, log_variance, d.label_test, seed)
                found |= _without_passive(net, mu, log_variance, d.x_test, seed)
        fewest, most = (figures[f"passive | beta {b:g}"] for b in (BETAS[0], BETAS[-1]))
        return {**found, "more with beta": most - fewest, **figures}


@torch.enable_grad()
def _trained(x: Tensor, beta: float, seed: int, steps: int) -> _VAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _VAE()
    draw = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=RATE)
    for _ in range(steps):
        rows = x[torch.randint(len(x), (BATCH,), generator=draw)]
        mu, log_variance = net.encode(rows).chunk(2, 1)
        noise = torch.randn(mu.shape, generator=draw)
        said = net.decode(mu + (log_variance / 2).exp() * noise)
        error = functional.mse_loss(said, rows, reduction="sum") / (2 * PIXEL_NOISE**2)
        kl = 0.5 * (mu.square() + log_variance.expm1() - log_variance).sum()
        optimiser.zero_grad()
        ((error + beta * kl) / len(rows)).backward()
        optimiser.step()
    return net.eval()


@torch.no_grad()
def _posterior(net: _VAE, x: Tensor) -> tuple[Float[Tensor, "row 10"], Float[Tensor, "row 10"]]:
    mu, log_variance = net.encode(x).chunk(2, 1)
    return mu, log_variance


@torch.no_grad()
def _without_passive(
    net: _VAE, mu: Tensor, log_variance: Tensor, x: Tensor, seed: int
) -> dict[str, float]:
    """Return the change of decoded pixels if passive latents are dropped."""
    kind = tuple(active_variables(mu, log_variance).kind.tolist())
    draw = torch.Generator().manual_seed(seed)
    code = mu + (log_variance / 2).exp() * torch.randn(mu.shape, generator=draw)
    errors = {"all": float((net.decode(code) - x).square().mean())}
    for name, kinds in {"without": kind, "none": (PASSIVE,) * len(kind)}.items():
        with editing(net.decode, DropPassive(kinds), "0:in"):
            errors[name] = float((net.decode(code) - x).square().mean())
    gain = (errors["all"] - errors["without"]) / errors["all"]
    return {
        "dropped, pixels": gain,
        **{f"error of pixels | {name}": value for name, value in errors.items()},
    }


def _found(mu: Tensor, log_variance: Tensor, label: Tensor, seed: int) -> dict[str, float]:
    result = active_variables(mu, log_variance)
    apart = {}
    for name, kind in (("passive", PASSIVE), ("active", ACTIVE)):
        for codes in ("mean", "sampled"):
            r = getattr(result, f"{codes}_correlation").abs().fill_diagonal_(0).amax(1)
            mine = r[result.kind == kind]
            apart[f"{name} | {codes}"] = float(mine.mean()) if len(mine) else 0.0
    draw = torch.Generator().manual_seed(seed)
    code = mu + (log_variance / 2).exp() * torch.randn(mu.shape, generator=draw)
    probes = {
        "all": v_information(code, label),
        "without": v_information(code[:, result.kind != PASSIVE], label),
    }
    halves = [ActiveVariables().fit(mu[i::2], y=log_variance[i::2]) for i in (0, 1)]
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
