"""The rule on 12 bits, and what a probe and checkpoints of small nets are."""

import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch import nn

from sonde_studies._bit_rule import BITS, bit_rule, checkpoints, untrained
from sonde_studies._layers import probed


@pytest.mark.truth("a quadratic form does not change with the sign of its argument")
def test_the_label_is_balanced_and_the_same_for_an_input_and_its_mirror():
    x, label = bit_rule(4)
    assert len(x.unique(dim=0)) == 2**BITS
    assert int(label.sum()) in range(2 ** (BITS - 1) - 1, 2 ** (BITS - 1) + 1)
    told = {tuple(row): c for row, c in zip(x.tolist(), label.tolist(), strict=True)}
    same = [told[tuple(-v for v in row)] == c for row, c in told.items()]
    assert sum(same) >= len(same) - 2  # rounding next to the median


def test_the_first_checkpoint_is_untrained_and_the_last_is_not():
    x, label = bit_rule(4)
    nets = checkpoints(x, label, nn.Tanh, 0.0, 4, 25)
    assert len(nets) == 3  # at 0, at 20, at the end
    fresh, first, last = (net(x) for net in (untrained(4, nn.Tanh), nets[0], nets[-1]))
    assert torch.equal(fresh, first)
    assert not torch.equal(fresh, last)


@pytest.mark.truth("scikit-learn's linear regression of indicators")
def test_a_probe_is_a_regression_of_indicators():
    draw = torch.Generator().manual_seed(7)
    label = torch.randint(4, (300,), generator=draw)
    x = torch.eye(4)[label] @ torch.randn(4, 6, generator=draw)
    x = x + torch.randn(x.shape, generator=draw)
    fitted = LinearRegression().fit(x[:200].numpy(), torch.eye(4)[label[:200]].numpy())
    said = torch.from_numpy(fitted.predict(x[200:].numpy())).argmax(1)
    right = float((said == label[200:]).double().mean())
    assert 0.3 < right < 0.9
    assert probed(x, label, 200) == pytest.approx(right)
