"""Pixels and regions: printed numbers, a brute-force curve, scikit-learn."""

from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from scipy import ndimage

from sonde.core.errors import InputError
from sonde.metrics import aupro, pixel_auroc

MAP = np.full((4, 6), 0.1)
MAP[0, :2], MAP[0, 5] = (0.9, 0.8), 0.7
MAP[1, :2] = (0.6, 0.5)
MAP[3, 4:] = (0.4, 0.3)
MASK = np.zeros((4, 6), dtype=int)
MASK[:2, :2] = MASK[3, 4:] = 1


@pytest.mark.truth("numbers worked out by hand")
def test_printed_numbers():
    assert aupro([MAP], [MASK], resamples=0).value == pytest.approx(0.86111111, abs=1e-8)
    assert pixel_auroc([MAP], [MASK], resamples=0).value == pytest.approx(0.96296296, abs=1e-8)


@pytest.mark.truth("the same map in float64")
@pytest.mark.parametrize(
    "kind", [torch.Tensor.bfloat16, torch.Tensor.requires_grad_, torch.Tensor.tolist]
)
def test_maps_in_any_container(kind):
    """Ranks are all that counts, and rounding to bfloat16 keeps these."""
    maps, masks = [kind(torch.tensor(MAP))], [torch.tensor(MASK, dtype=torch.bfloat16)]
    for metric in (aupro, pixel_auroc):
        want = metric([MAP], [MASK], resamples=0)
        assert metric(maps, masks, resamples=0).value == want.value
    for wrong in ("a", None):
        with pytest.raises(InputError, match="aupro: expected maps as numbers"):
            aupro([wrong], masks)


def some(n=6, seed=0):
    rng = np.random.default_rng(seed)
    masks = [
        (ndimage.gaussian_filter(rng.normal(size=(12, 9)), 1) > 0.2).astype(int) for _ in range(n)
    ]
    return [rng.integers(0, 9, (12, 9)) + 3 * m for m in masks], masks


@pytest.mark.truth("scikit-learn; the definition threshold by threshold")
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_by_brute_force(limit):
    maps, masks = some()
    flat, truth = (
        np.concatenate([m.ravel() for m in maps]),
        np.concatenate([m.ravel() for m in masks]),
    )
    found = pixel_auroc(maps, masks, resamples=20)
    assert found.value == pytest.approx(sklearn.metrics.roc_auc_score(truth, flat), abs=1e-12)
    assert found.n == 6
    points = [(0.0, 0.0)]
    for t in sorted(set(flat.tolist()), reverse=True):
        shares = []
        for scores, mask in zip(maps, masks, strict=True):
            labelled: Any = ndimage.label(mask, np.ones((3, 3)))
            regions, n = labelled
            shares += [np.mean(scores[regions == r] >= t) for r in range(1, n + 1)]
        points.append((float(np.mean(flat[truth == 0] >= t)), float(np.mean(shares))))
    x, y = np.array(points).T
    cut = np.unique(np.r_[x[x < limit], limit])
    want = np.trapezoid(np.interp(cut, x, y), cut) / limit
    assert aupro(maps, masks, limit=limit, resamples=20).value == pytest.approx(want, abs=1e-9)


def test_what_is_refused():
    with pytest.raises(InputError, match="a mask for each map"):
        aupro([MAP], [])
    with pytest.raises(InputError, match="a mask of the same shape"):
        aupro([MAP], [MASK[:2]])
    with pytest.raises(InputError, match="got only one of the two"):
        aupro([MAP], [MASK * 0])
    with pytest.raises(InputError, match="limit"):
        aupro([MAP], [MASK], limit=0)
