"""What a forward takes by name or by place is an input, also where its name usually means more."""

import numpy as np
import pytest
import torch
from torch import nn

from sonde.core import errors
from sonde.data import load, open_inputs


class Conditioned(nn.Module):
    """Adds a class embedding, where it is given one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.classes = nn.Linear(4, 3), nn.Embedding(5, 3)

    def forward(self, x, y=None):
        return self.body(x) if y is None else self.body(x) + self.classes(y)


class Timed(nn.Module):
    """Needs the time."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 3)

    def forward(self, x, t):
        return self.body(x) + t[:, None]


X, Y = torch.arange(24.0).view(6, 4), torch.arange(6) % 5


def outputs(model, items, **options):
    inputs = open_inputs(load(model), items, **options)
    (batch,) = inputs.batches(0, len(items))
    return model(*batch.args, **batch.kwargs), batch.label.tolist()


@pytest.mark.truth("the model called by hand")
def test_a_key_that_the_forward_takes_is_an_input():
    model, named = Conditioned().eval(), [{"x": x, "y": int(y)} for x, y in zip(X, Y, strict=True)]
    found, label = outputs(model, named)
    assert torch.equal(found, model(X, Y))
    assert label == [-1] * 6
    (said,) = open_inputs(load(model), named).notes
    assert said.startswith("'y' is passed as an argument of forward, not used as a label")
    found, label = outputs(model, named, label_column="y")
    assert torch.equal(found, model(X))
    assert label == Y.tolist()
    late = [*({"x": x} for x in X.repeat(5, 1)), *named]
    with pytest.raises(errors.InputError, match="item 0 of list: no value in column 'y'"):
        open_inputs(load(model), late)


@pytest.mark.truth("the model called by hand")
def test_a_tuple_gives_the_forward_its_tensors():
    timed, times = Timed().eval(), torch.arange(6)
    for t in (times, times.float(), times.numpy()):
        found, label = outputs(timed, list(zip(X, t, strict=True)))
        assert torch.equal(found, timed(X, times))
        assert label == [-1] * 6
    found, label = outputs(timed, list(zip(X, times.float(), Y.tolist(), strict=True)))
    assert torch.equal(found, timed(X, times))
    assert label == Y.tolist()


def test_what_a_tuple_means_is_asked_where_nothing_tells():
    model, pairs = Conditioned().eval(), list(zip(X, Y, strict=True))
    with pytest.raises(errors.InputError, match=r"'y' of forward, or the label.*label_column"):
        open_inputs(load(model), pairs)
    found, label = outputs(model, pairs, label_column="label")
    assert torch.equal(found, model(X))
    assert label == Y.tolist()


@pytest.mark.parametrize("form", ["items", "arrays"])
def test_a_key_that_nobody_takes_is_refused(tmp_path, form):
    model, data = Timed().eval(), [{"x": x, "t": 1, "tt": 2} for x in X]
    if form == "arrays":
        data = tmp_path / "a.npz"
        np.savez(data, x=X.numpy(), t=np.ones(6, np.float32), tt=np.zeros((6, 2)))
    with pytest.raises(
        errors.InputError, match=r"no argument 'tt'.*Did you mean t.*ignore-columns"
    ):
        open_inputs(load(model), data)
    inputs = open_inputs(load(model), data, ignore_columns="tt")
    assert next(inputs.batches(0, 6)).kwargs.keys() == {"x", "t"}
