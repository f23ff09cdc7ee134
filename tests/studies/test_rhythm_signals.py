"""Classes of signals, told by their spectra."""

import pytest
import torch

from sonde_studies._rhythm_signals import CHANNELS, KINDS, RHYTHMS, SAMPLES, rhythm_signals


def _power(x):
    """Return the share of each rhythm in the power of each four patches."""
    heard = x.unflatten(2, (CHANNELS, SAMPLES)).transpose(1, 2).flatten(2)
    turn = torch.outer(torch.arange(heard.shape[2]), torch.tensor(RHYTHMS))
    waves = heard[..., None] * torch.polar(torch.ones_like(turn), turn)
    power = waves.unflatten(2, (4, -1)).sum(3).abs().square().sum(1)
    return (power / power.sum(2, keepdim=True)).flatten(1)


@pytest.mark.truth("Fourier transforms of each quarter of a signal at the three rhythms")
def test_the_class_is_the_order_of_the_strong_rhythms():
    known, kind = rhythm_signals(600, 0)
    means = torch.stack([_power(known)[kind == k].mean(0) for k in range(KINDS)])
    new, truth = rhythm_signals(300, 1)
    told = torch.cdist(_power(new), means).argmin(1)
    assert float((told == truth).double().mean()) > 0.9
    strong = means.unflatten(1, (4, 3)).argmax(2)
    assert len(strong.unique(dim=0)) == KINDS
