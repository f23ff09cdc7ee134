"""Channels of large gain are silenced, and no others."""

import numpy as np
import pytest
import torch
from torch import nn

from narrow import present
from sonde.core import InputError
from sonde.edit import LipschitzPrune
from sonde.edit.lipschitz_prune import channel_gains


def net():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
    with torch.no_grad():
        norm.weight.uniform_(0.9, 1.1)
        present(norm.running_var).uniform_(0.8, 1.2)
        conv.weight[5] *= 20
    return nn.Sequential(conv, norm, nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()


@pytest.mark.truth("numpy: singular values")
def test_gains_are_singular_values_times_the_gain_of_the_norm():
    module = net()
    [(name, norm, gains)] = channel_gains(module)
    for c, kernel in enumerate(module.get_parameter("0.weight").detach().numpy()):
        largest = np.linalg.svd(kernel.reshape(3, 9).astype(float), compute_uv=False)[0]
        scale = float(norm.weight.detach()[c]) / np.sqrt(
            float(present(norm.running_var)[c]) + norm.eps
        )
        assert float(gains[c]) == pytest.approx(largest * scale, rel=1e-6)
    assert name == "1"


def test_the_planted_channel_is_silent_and_all_others_keep_their_bits():
    module, x = net(), torch.randn(2, 3, 8, 8)
    plan = LipschitzPrune().plan(module)
    new = plan.fold(module)
    before, after = module[:2](x), new[:2](x)
    others = [c for c in range(16) if c != 5]
    assert not bool(after[:, 5].any())
    assert torch.equal(before[:, others], after[:, others])
    assert plan.figures == {"n_silenced": 1.0, "n_channels": 16.0}


def test_a_channel_without_neighbours_stays():
    alone = nn.Sequential(nn.Conv2d(2, 1, 3), nn.BatchNorm2d(1)).eval()
    assert LipschitzPrune().plan(alone).figures == {"n_silenced": 0.0, "n_channels": 1.0}


def test_a_net_without_batch_norm_is_refused():
    with pytest.raises(InputError, match="a batch norm behind them, got none in Sequential"):
        LipschitzPrune().plan(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))
    with pytest.raises(InputError, match="spreads above 0"):
        LipschitzPrune(spreads=0)
