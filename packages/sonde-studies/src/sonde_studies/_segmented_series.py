"""Series of a slow and a fast part, and autoencoders whose code has a segment for each."""

import torch
from sklearn.linear_model import Ridge  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn

from sonde.train import LatentTerms
from sonde_studies.arms import part
from sonde_studies.worlds.learning import drawn, minimise

LENGTH, SEGMENTS, NOISE, N_FIT, N_HELD = 32, (3, 3), 0.1, 1_000, 500
SERIES_ARMS: dict[str, tuple[float, float]] = {
    "plain": (1.0, 1.0),
    "segments": (0.0, 4.0),
}
"""Weights of the mutual information and of the total correlation between segments."""


def series(n: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Return series (row, step), and the factors of their slow and of their fast part."""
    draw = torch.Generator().manual_seed(seed)
    t = torch.linspace(-1, 1, LENGTH)
    slope, bend, rate, turn = (2 * torch.rand(4, n, 1, generator=draw) - 1).unbind(0)
    angle = torch.pi * ((2.5 + 0.5 * rate) * t + turn)
    x = slope * t + bend * (t.square() - 1 / 3) + angle.sin() / 2
    x = x + NOISE * torch.randn(x.shape, generator=draw)
    fast = torch.cat([rate, (torch.pi * turn).sin(), (torch.pi * turn).cos()], 1)
    return x, [torch.cat([slope, bend], 1), fast]


def segment_figures(seed: int, steps: int) -> dict[str, dict[str, float]]:
    """Return for each arm how well the code says both parts, and how far segments share them."""
    x, factors = series(N_FIT + N_HELD, seed)
    return {arm: _judged(_codes(x, arm, weights, seed, steps), factors)
            for arm, weights in SERIES_ARMS.items()}  # fmt: skip


def _codes(x: Tensor, arm: str, weights: tuple[float, float], seed: int, steps: int) -> Tensor:
    """Return the means of the codes of an autoencoder that learned with these weights."""
    dim = sum(SEGMENTS)
    net = drawn(
        lambda: nn.ModuleList([
            nn.Sequential(nn.Linear(LENGTH, 64), nn.Tanh(), nn.Linear(64, 2 * dim)),
            nn.Sequential(nn.Linear(dim, 64), nn.Tanh(), nn.Linear(64, LENGTH)),
        ]),
        seed,
    )  # fmt: skip
    encoder, decoder = net
    terms = LatentTerms(weights[0], weights[1], 1.0, groups=SEGMENTS)

    def loss(rows: Tensor) -> Tensor:
        mean, log = encoder(x[rows]).chunk(2, 1)
        z = mean + (log.clamp(min=-8.0) / 2).exp() * torch.randn_like(mean)
        missed = (decoder(z) - x[rows]).square().sum(1).mean() / (2 * NOISE**2)
        return missed + terms(mean, log, z)

    with part(f"series, {arm}"):
        minimise(loss, net.parameters(), N_FIT, steps=steps, seed=seed)
    with torch.no_grad():
        return encoder(x).chunk(2, 1)[0]


def _judged(code: Tensor, factors: list[Tensor]) -> dict[str, float]:
    whole = [_explained(code, factor) for factor in factors]
    apart = [[_explained(part, factor) for part in code.split(SEGMENTS, 1)] for factor in factors]
    return {
        "slow": whole[0],
        "fast": whole[1],
        "gap": sum(abs(a - b) for a, b in apart) / len(apart),
    }


def _explained(code: Tensor, factor: Tensor) -> float:
    """Return the share of a factor's variance that units, their squares and products explain."""
    pairs = torch.triu_indices(code.shape[1], code.shape[1])
    x = torch.cat([code, code[:, pairs[0]] * code[:, pairs[1]]], 1).double().numpy()
    y = factor.double().numpy()
    head = Ridge(alpha=1.0).fit(x[:N_FIT], y[:N_FIT])
    return float(head.score(x[N_FIT:], y[N_FIT:]))
