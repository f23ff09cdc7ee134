"""Models of the studies' places, and what their rewrites are given."""

import pytest

from sonde.compress import GPTQ, RTN
from sonde.data import open_inputs
from sonde_studies._help_pages import language_model, needed
from sonde_studies._shrunk import wide_net


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 3])
def test_plain_rounding_reads_no_examples(bits):
    """Below four bits the library would choose grids by the examples that it is given."""
    model = language_model("smollm2", tiny=True)
    data = open_inputs(model, ["some text"])
    assert needed(RTN(bits), data) == {}
    assert [*needed(GPTQ(bits), data)] == ["calibration"]
    found = wide_net(0, tiny=True)
    plain = found.model.module
    own, given = (found.loss(plan.fold(plain)) for plan in (
        found.planned(RTN(bits, layers=("2", "4"))), RTN(bits, layers=("2", "4")).plan(found.model)
    ))  # fmt: skip
    assert own == given
