"""Code lengths against scikit-learn's probes on the same blocks."""

import math

import pytest
import torch

from sonde.core import InputError
from sonde.explain import MdlProbe

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(500, 5, generator=DRAW, dtype=torch.float64)
NOISY = (X[:, 0] + 0.5 * torch.randn(500, generator=DRAW) > 0).long()


@pytest.mark.truth("scikit-learn's logistic regression on the rows before a block")
def test_a_block_costs_the_log_loss_of_the_probe_before_it():
    from sklearn.linear_model import LogisticRegression

    # Five groups of equal rows of copies: whichever comes first, the blocks' sums are the same.
    x, y = X[:100].repeat(10, 1), NOISY[:100].repeat(10)
    found = MdlProbe(l2=0.1).fit(x, label=y, group=torch.arange(1000) // 100)
    z = (X[:100] - X[:100].mean(0)).numpy()
    z = z / (z**2).mean() ** 0.5
    # two classes with a weight each: the penalty of their difference is half
    model = LogisticRegression(C=2 / (0.1 * 100), tol=1e-10, max_iter=1000).fit(z, y[:100].numpy())
    loss = -model.predict_log_proba(z)[range(100), y[:100].numpy()].sum()
    assert found.ends.tolist() == [100, 200, 400, 800, 1000]
    want = [100 * math.log(2), loss, 2 * loss, 4 * loss, 2 * loss]
    torch.testing.assert_close(
        found.blocks, torch.tensor(want, dtype=torch.float64), rtol=1e-4, atol=0.0
    )
    assert found.value == pytest.approx(1000 * math.log(2) / sum(want), rel=1e-4)


def test_labels_that_need_less_learning_have_shorter_codes():
    clean = MdlProbe().fit(X, label=(X[:, 0] > 0).long())
    noisy = MdlProbe().fit(X, label=NOISY)
    chance = MdlProbe().fit(X, label=torch.randint(2, (500,), generator=DRAW))
    assert clean.value > noisy.value > 1.3 > chance.value
    assert chance.value < 1.05
    assert noisy.null == pytest.approx(1.0, abs=0.05)
    assert 0 < noisy.se < 0.2


def test_one_class_is_refused():
    with pytest.raises(InputError, match="two classes, got 1"):
        MdlProbe().fit(X, label=torch.zeros(500, dtype=torch.int64))
