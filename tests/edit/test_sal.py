"""Orthogonal erasure by singular vectors of the cross-covariance."""

import pytest
import torch

from edit.test_leace import CONTEXT, SITE, cross_covariance, rows
from sonde.core import InputError
from sonde.edit import Sal


@pytest.mark.truth("plain singular vectors of sqrt(share) (class mean - mean)")
def test_the_strongest_direction_goes_first():
    x, label = rows(601, classes=4)
    share = torch.bincount(label) / len(label)
    gap = torch.stack([x[label == k].mean(0) for k in range(4)]) - x.mean(0)
    u = torch.linalg.svd((gap * share.sqrt()[:, None]).T).U[:, :1]
    found = Sal(rank=1).fit(x, label)
    new = found.edit().apply(x, SITE, CONTEXT)
    torch.testing.assert_close(new, x - (x - x.mean(0)) @ u @ u.T)
    assert float(cross_covariance(new, label).norm()) > 0.01
    projector = torch.eye(6) - found.left @ found.right.T
    torch.testing.assert_close(projector @ projector, projector)
    torch.testing.assert_close(projector.T, projector)
    assert Sal().fit(x, label).rank == 3
    still = Sal().fit(torch.ones(6, 3), [0, 1] * 3)
    assert (still.rank, still.flags) == (0, ("dead",))
    with pytest.raises(InputError, match="rank of at least 1"):
        Sal(rank=0)
