"""A mask on pictures whose telling block is known."""

import pytest
import torch

from sonde.core import InputError
from sonde.explain import Comet
from sonde_studies._blocks import block_digits, block_mlp

HOW = {"area": 0.5, "patch": 4, "steps": 200, "batch": 64}


@pytest.fixture(scope="module")
def data():
    found = block_digits(0)
    return found.part(0, 1200), found.part(1200, 1797)


@pytest.fixture(scope="module")
def trained(data):
    fit, held = data
    return {
        weight: Comet(weight=weight, **HOW).fit(block_mlp, fit.x, fit.label, (held.x, held.label))
        for weight in (4.0, 0.0)
    }


def _inside(found, held):
    mask = found.mask(held.x)
    return float((mask * held.signal).sum() / mask.sum())


@pytest.mark.truth("planted: the digit lies in one block, the other is the same for all classes")
def test_the_mask_is_the_block_that_tells_and_the_rest_tells_nothing(data, trained):
    _, held = data
    found = trained[4.0]
    assert _inside(found, held) > 0.9
    assert found.value > 0.9
    assert found.complement < 0.2
    assert found.area == pytest.approx(0.5, abs=0.05)


def test_without_the_net_that_reads_the_rest_the_rest_still_tells(data, trained):
    _, held = data
    assert trained[0.0].complement > trained[4.0].complement + 0.4
    assert _inside(trained[0.0], held) < 0.8


@pytest.mark.truth("accuracies from the nets by hand")
def test_accuracies_are_those_of_the_nets_on_what_is_kept_and_on_what_is_left(data, trained):
    _, held = data
    found = trained[4.0]
    mask = found.mask(held.x)[:, None]
    right = (found(held.x).argmax(1) == held.label).double().mean()
    assert found.value == pytest.approx(float(right))
    with torch.no_grad():
        left = found.detector((1 - mask) * held.x)
        kept = found.predictor(mask * held.x)
    assert found.complement == pytest.approx(float((left.argmax(1) == held.label).double().mean()))
    torch.testing.assert_close(found(held.x), kept)
    assert found.range == (0.0, 1.0)


def test_weights_that_make_keeping_all_the_cheapest_are_refused(data):
    with pytest.raises(InputError, match=r"area_weight \* \(1 - area\) >= weight \* gap = 8"):
        Comet(area=0.5, area_weight=10.0)
    with pytest.raises(InputError, match=r"an area in \(0, 1\]"):
        Comet(area=0.0)
    fit, held = data
    with pytest.raises(InputError, match="expected a finite loss, got nan at step 0"):
        Comet(**HOW).fit(block_mlp, fit.x * torch.nan, fit.label, (held.x, held.label))
