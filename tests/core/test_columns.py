import pytest
import torch

from sonde.core import Stream
from sonde.core.columns import COLUMNS, Columns, declared
from sonde.core.errors import InputError
from sonde.detect import MSP
from sonde.stats import Scalars


def test_what_arrays_may_bring_is_declared():
    assert set(Columns.__annotations__) - set(COLUMNS) == {"keys"}


@pytest.mark.parametrize("fit", [Stream.of, MSP().fit])
def test_an_unknown_column_names_its_neighbour(fit):
    with pytest.raises(InputError, match=r"no column is called 'logit'.*logits"):
        fit(torch.zeros(4, 2), logit=torch.zeros(4, 2))


def test_whole_numbers_reach_a_statistic():
    stream = Stream.of(torch.zeros(4, 2), first_error=[-3, -1, 0, 2])
    batch = next(iter(stream))
    state = Scalars(column="first_error").observe(batch.column("first_error", "x"))
    assert (float(state.low), float(state.high)) == (-3.0, 2.0)


def test_a_column_that_nothing_brings_says_why():
    batch = next(iter(Stream.of(torch.zeros(2, 2))))
    with pytest.raises(InputError, match=COLUMNS["grad"].missing.split("=")[0]):
        batch.column("grad", "x")
    with pytest.raises(InputError, match=declared("unheard of").missing):
        batch.column("unheard of", "x")
