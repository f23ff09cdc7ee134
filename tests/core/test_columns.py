import pytest
import torch

from sonde.core import Stream
from sonde.core.columns import COLUMNS, Columns, declared
from sonde.core.errors import InputError, ShapeError
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


@pytest.mark.truth("classes as numbers")
def test_one_hot_rows_are_labels_and_other_rows_are_not():
    x, label = torch.randn(4, 3), torch.tensor([2, 0, 1, 2])
    hot = torch.nn.functional.one_hot(label)
    for given in (hot, hot.double(), hot.numpy()):
        stream = Stream.of(x, label=given)
        assert next(iter(stream.batches(0, 4))).label.equal(label)
    with pytest.raises(ShapeError, match=r"got shape \(4, 3\) whose rows are not one-hot"):
        Stream.of(x, label=1 - hot)
