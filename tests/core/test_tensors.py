"""What people hand in as numbers: what becomes a tensor, and what is refused with what to do."""

import numpy as np
import pytest
import torch

from sonde.alarms import cauchy, fuse
from sonde.core.errors import InputError, ShapeError
from sonde.core.stream import Stream
from sonde.core.tensors import as_tensor
from sonde.detect import KNN
from sonde.metrics import aupr, auroc, fpr_at_tpr, roc

RAGGED = [[1.0, 2.0], [3.0]]
NO_NUMBERS = {
    "ragged": RAGGED,
    "ragged array": np.array([np.zeros(2), np.zeros(3)], dtype=object),
    "none": [[None, None]],
    "text": [["a", "b"]],
    "one text": "abc",
    "objects": np.array([[{}]], dtype=object),
    "complex": np.ones((2, 2)) * 1j,
    "nothing": None,
    "masked": np.ma.masked_greater(np.ones((2, 2)), 0.5),
    "sparse": torch.eye(2).to_sparse(),
}


@pytest.mark.truth("numpy")
def test_numbers_in_any_container():
    want = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    array = want.numpy()
    given = [
        want, array, array.tolist(), tuple(map(tuple, array)), list(want),
        np.array(array[::-1])[::-1], array.astype(">f8"), array.astype(object),
        array.astype(int), array.astype("u2"), array.astype(np.longdouble),
    ]  # fmt: skip
    for values in given:
        assert torch.equal(as_tensor("f", values, "rows").double(), want)
    assert as_tensor("f", [True, False], "rows").dtype == torch.bool
    assert as_tensor("f", range(3), "rows").tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_arrays_that_hold_no_numbers_are_refused(name):
    values = NO_NUMBERS[name]
    for call in (Stream.of, KNN(k=1).fit, lambda x: Stream.of({"a": x})):
        with pytest.raises(ShapeError, match=r"Stream\.of: expected [xa] as numbers .*, got"):
            call(values)
    if values is not None:
        with pytest.raises(ShapeError, match="expected logits as numbers"):
            Stream.of([[1.0]], logits=values)


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_scores_and_p_values_that_are_no_numbers_are_refused(name):
    values, kinds = NO_NUMBERS[name], [0, 1]
    for metric in (auroc, aupr, fpr_at_tpr, roc):
        with pytest.raises(InputError, match="expected scores as numbers"):
            metric(values, kinds)
        with pytest.raises(InputError, match="expected labels as numbers"):
            metric([0.1, 0.2], values)
    with pytest.raises(InputError, match="cauchy: expected p-values as numbers"):
        cauchy(values)
    rows = torch.randn(40, 2)
    with pytest.raises(InputError, match="fuse: expected scores as numbers"):
        fuse(values)
    if values is not None:
        with pytest.raises(InputError, match="fuse: expected unusual scores as numbers"):
            fuse(rows, rule="learned", out_of_distribution=values)
    with pytest.raises(InputError, match="FusedScore: expected scores as numbers"):
        fuse(rows).score(values)
