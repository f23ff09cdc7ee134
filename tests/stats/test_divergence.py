"""Divergences and entropies of logarithms: against scipy, with classes that are ruled out."""

import pytest
import torch
from scipy.special import rel_entr
from scipy.stats import entropy as scipy_entropy

from sonde.stats.divergence import entropy, kl_divergence


@pytest.mark.truth("scipy's entropy on the classes that are not ruled out")
def test_classes_that_are_ruled_out_count_nothing():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 7, 5, generator=draw, dtype=torch.float64)
    logits[0, :, 3] = -torch.inf
    logits[:, 4, 1] = -torch.inf
    p, q = logits.log_softmax(-1)
    q.requires_grad_()
    found = kl_divergence(p, q)
    for row in range(7):
        a, b = p[row].exp().numpy(), q[row].exp().detach().numpy()
        assert found[row].item() == pytest.approx(rel_entr(a, b).sum())
        assert float(entropy(p)[row]) == pytest.approx(scipy_entropy(a))
    found.sum().backward()
    assert q.grad is not None
    assert bool(torch.isfinite(q.grad).all())
    assert float(kl_divergence(q.detach(), p)[0]) == float("inf")
    assert float(kl_divergence(p, p).abs().max()) == 0.0
