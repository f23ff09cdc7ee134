"""Erasure of numbers at a second site."""

import numpy as np
import pytest
import torch

from edit.test_leace import CONTEXT, EXACT, SITE, erased, rows
from sonde.core import InputError
from sonde.edit import PairedLeace


@pytest.mark.truth("least squares of the rows on the numbers")
def test_numbers_at_a_second_site():
    x, _ = rows()
    z = torch.stack([x[:, 0] * 0.5 + x[:, 1], x[:, 2] ** 2, torch.ones(len(x))], 1)
    z = z + torch.randn(len(x), 3, generator=torch.Generator().manual_seed(2)) * torch.tensor(
        [1, 1, 0]
    )
    result = PairedLeace().fit(x, y=z)
    centred = (z - z.mean(0)).double()
    new = erased(result, x)
    assert float((new.T @ centred).abs().max()) / len(x) < 1e-10
    assert result.rank == 2
    slope = np.linalg.lstsq(centred.numpy(), (x - x.mean(0)).numpy(), rcond=None)[0]
    oracle = result.oracle(z).apply(x, SITE, CONTEXT)
    torch.testing.assert_close(oracle, x - centred @ torch.from_numpy(slope))
    with pytest.raises(InputError, match="a concept that varies"):
        PairedLeace().fit(x, y=z[:, 2:])


@pytest.mark.truth("joint classes as numbers")
def test_classes_as_numbers_are_the_same():
    x, label = rows(rare=30, classes=2)
    by_number = PairedLeace(shrinkage=0.0).fit(x, y=label[:, None].double())
    torch.testing.assert_close(erased(by_number, x), erased(EXACT.fit(x, label), x))
