import inspect

import pytest
import torch

import sonde.detect
from sonde.core.instrument import Detector
from sonde_studies._battery import CANNOT, of_patches, of_rows
from sonde_studies.overview import _least_p


def test_every_detector_is_tried_or_left_out_with_a_reason():
    exported = {
        name
        for name in sonde.detect.__all__
        if inspect.isclass(kind := getattr(sonde.detect, name)) and issubclass(kind, Detector)
    }
    tried = [one.name for one in of_rows() + of_patches()]
    assert len(tried) == len(set(tried))
    assert sorted([*tried, *CANNOT]) == sorted(exported)


@pytest.mark.truth("p-values counted one by one")
def test_the_smaller_p_value_orders_rows():
    draw = torch.Generator().manual_seed(0)
    held, test = (torch.randn(2, n, generator=draw) for n in (40, 15))
    found = _least_p([{"held": held[i], "test": test[i]} for i in range(2)])
    p = [[(1 + sum(h >= s for h in held[i])) / 41 for s in test[i]] for i in range(2)]
    want = torch.tensor([min(pair) for pair in zip(*p, strict=True)])
    assert torch.equal(found["test"].argsort(stable=True), (-want).argsort(stable=True))
    torch.testing.assert_close(1 - found["test"], (want.double() * 41 - 1) / 40)
