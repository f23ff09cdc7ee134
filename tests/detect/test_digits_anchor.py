"""Every detector end to end: a small net on six of the ten digits, the other four as near unusual
inputs, noise as far ones. The figures were measured once by an independent implementation."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from sonde.core.calibration import Calibration
from sonde.core.instrument import score_needs
from sonde.detect import COSTARR, KNN, NAC, Energy, Mahalanobis, RelativeMahalanobis, ViM
from sonde.stats.auroc import auroc

pytestmark = pytest.mark.filterwarnings("ignore:NAC. in .* cover an outer bin")
SEEDS, FIT, HELD = 5, 500, 250
BAND = 0.05

KNOWN = {  # near AUROC, far AUROC, train against test AUROC
    "energy": (Energy(), 0.887, 0.769, 0.528),
    "mahalanobis": (Mahalanobis(), 0.870, 0.995, 0.569),
    "relative mahalanobis": (RelativeMahalanobis(), 0.924, 0.997, 0.592),
    "nearest neighbours": (KNN(k=10), 0.932, 0.962, 0.547),
    "residual": (ViM(), 0.912, 0.996, 0.596),
    "residual, sampled": (ViM(alpha="paper"), 0.911, 0.996, 0.596),
    "attenuation": (COSTARR(), 0.899, 0.929, 0.54),
    "attenuation, with the logit": (COSTARR(logit="minmax"), 0.892, 0.792, 0.53),
    "coverage": (NAC(), 0.896, 0.903, 0.585),
    "coverage, alpha 1": (NAC(alpha=1.0), 0.894, 0.904, 0.58),
    "coverage, alpha 100": (NAC(alpha=100.0), 0.587, 0.625, 0.52),
}


def _trained(x, label, seed):
    torch.manual_seed(seed)
    layers = (nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
    body, head = nn.Sequential(*layers), nn.Linear(64, 6)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-3, fused=True)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(body(x)), label).backward()
        optimizer.step()
    return body, head


def _columns(body, head, x):
    """Rows of the last hidden layer, logits, and the gradient of the divergence from uniform."""
    h = body(x).detach().requires_grad_()
    logits = head(h)
    (grad,) = torch.autograd.grad(-torch.log_softmax(logits, 1).mean(1).sum(), h)
    return {"x": h.detach(), "logits": logits.detach(), "grad": grad}


def _one_seed(seed):
    rng = np.random.default_rng(seed)
    pixels, digit = load_digits(return_X_y=True)
    pixels = torch.from_numpy(pixels / 16.0).float()
    chosen = rng.permutation(10)[:6]
    known = rng.permutation(np.flatnonzero(np.isin(digit, chosen)))
    label = torch.from_numpy(np.searchsorted(np.sort(chosen), digit[known]))
    near = pixels[np.flatnonzero(~np.isin(digit, chosen))]
    far = torch.from_numpy(rng.uniform(size=(500, 64))).float()
    body, head = _trained(pixels[known[:FIT]], label[:FIT], seed)
    parts = [pixels[known[:FIT]], pixels[known[FIT : FIT + HELD]], pixels[known[FIT + HELD :]]]
    fit, held, test, near, far = (_columns(body, head, p) for p in (*parts, near, far))
    out = {}
    for name, (detector, *_) in KNOWN.items():
        rest = {k: v for k, v in fit.items() if k != "x"}
        weights = head.weight.detach(), head.bias.detach()
        scorer = detector.fit(fit["x"], label[:FIT], head=weights, **rest)
        needs = score_needs(detector)
        scores = [scorer.score(*[p[c] for c in needs]) for p in (fit, held, test, near, far)]
        alarms = Calibration.from_scores(scores[1]).p_value(scores[2]) <= 0.05
        areas = [
            auroc(scores[2], scores[3]),
            auroc(scores[2], scores[4]),
            auroc(scores[0], scores[2]),
        ]
        out[name] = [*(a.value for a in areas), float(alarms.double().mean())]
    return out


@pytest.fixture(scope="module")
def figures():
    seeds = [_one_seed(seed) for seed in range(SEEDS)]
    return {name: np.mean([s[name] for s in seeds], axis=0) for name in KNOWN}


@pytest.mark.truth("an independent numpy implementation on the same recipe, five seeds")
@pytest.mark.parametrize("name", KNOWN)
def test_figures_are_in_the_band(figures, name):
    near, far, train, alarms = figures[name]
    want = KNOWN[name][1:]
    assert train == pytest.approx(want[2], abs=BAND)
    assert alarms == pytest.approx(0.05, abs=0.025)
    assert near == pytest.approx(want[0], abs=BAND)
    assert far == pytest.approx(want[1], abs=2 * BAND if name.endswith("100") else BAND)
