import numpy as np
import pytest
import torch

from sonde.core.errors import InputError
from sonde.detect import Mahalanobis, RelativeMahalanobis


def _data(n=400, dim=8, classes=3):
    rng = np.random.default_rng(0)
    label = rng.integers(0, classes, n)
    x = rng.standard_normal((n, dim)) + 4.0 * rng.standard_normal((classes, dim))[label]
    return torch.from_numpy(x), label


@pytest.mark.truth("worked out by hand")
def test_known_values():
    square = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    rows = torch.cat([square, square + torch.tensor([10.0, 0.0])])
    query = torch.tensor([[3.0, 1.0], [6.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    scorer = RelativeMahalanobis(shrinkage=0.0).fit(rows, [0] * 4 + [1] * 4)
    want = [7.64705882, 50.0, -0.98039216]
    assert scorer.score(query).tolist() == pytest.approx(want, rel=1e-8)


def test_is_the_difference_of_two_fits():
    x, label = _data()
    near, every = Mahalanobis().fit(x, label), Mahalanobis(classes=False).fit(x)
    want = near.score(x) - every.score(x)
    scorer = RelativeMahalanobis().fit(x, label)
    torch.testing.assert_close(scorer.score(x), want)
    assert float(scorer) == pytest.approx(float(near) - float(every), rel=1e-9)


def test_without_labels_it_says_what_to_do():
    with pytest.raises(InputError, match=r"RelativeMahalanobis: expected labels, got none\. Pass"):
        RelativeMahalanobis().fit(_data()[0])
