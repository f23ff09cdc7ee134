"""``sonde.read`` of feature arrays heeds every option that it takes, and refuses the others."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cli_case import run_words
from sonde.core import Stream
from sonde.core.errors import InputError
from sonde.detect import Energy, Mahalanobis
from sonde.run.fitting.fit import fit
from sonde.run.reading.read import read
from sonde.run.scoring.calibrate import calibrate


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "f.npz"
    np.savez(path, a=np.arange(60.0).reshape(20, 3), b=np.ones((20, 2)), kind=np.arange(20) % 2)
    return path


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label_column": "kind", "group_column": "kind"}, "leave out label_column, group_column"),
        ({"max_length": 3}, "leave out max_length"),
        ({"skip_bad": True}, r"leave out skip_bad\. Its labels, groups and ids are the arrays"),
        ({"nonsense": 1}, "leave out nonsense"),
        ({"reducer": "tokens", "further": ["patches"]}, r"leave out reducer, further\."),
        ({"batch_size": 7, "processor": object()}, r"leave out batch_size, processor\."),
        ({"keep_special": True, "logits": True}, r"leave out keep_special, logits\."),
    ],
)
def test_options_that_arrays_cannot_heed_are_refused(file, options, said):
    with pytest.raises(InputError, match=said):
        read("-", file, **options)


@pytest.mark.truth("the arrays that were written")
def test_the_others_are_heeded(file):
    stream = read("-", file, sites="a", limit=7, label_column=None, skip_bad=False, long="auto")
    (batch,) = stream
    assert {key: rows.tolist() for key, rows in batch.rows.items()} == {
        "a": np.arange(21.0).reshape(7, 3).tolist()
    }


@pytest.mark.parametrize("by", [None, "predicted"])
def test_what_a_bundle_was_read_with_is_not_asked_of_arrays(file, by):
    x = torch.arange(60.0).reshape(20, 3)
    method = Energy() if by is None else Mahalanobis()
    fitted = fit(method, Stream.of({"a": x}, logits=x), calibrate=0, progress=False)
    with pytest.raises(InputError, match="needs the column 'logits'"):
        calibrate(fitted, "-", file, by=by, progress=False)


def test_the_command_line_says_it_too(file):
    ran = run_words("scan", "-", file, "--label-column", "kind", "--json")
    assert ran.code == 2
    assert "leave out label_column" in ran.err


def test_labels_in_a_column_are_those_of_a_line(tmp_path):
    x, y = torch.randn(60, 4), torch.arange(60).remainder(3)
    x[:, 1] += 2.0 * y
    net = nn.Linear(4, 5).eval()
    np.savez(tmp_path / "rows.npz", x=x.numpy(), label=y[:, None].numpy())
    loader = DataLoader(TensorDataset(x, y[:, None]), batch_size=16)
    for data in ({"x": x, "label": y[:, None]}, (x, y[:, None]), loader, tmp_path / "rows.npz"):
        (batch,) = read(net, data)
        assert batch.label[batch.order.argsort()].tolist() == y.tolist()
    fitted = [Mahalanobis().fit(x, label).score(x) for label in (y, y[:, None], y[:, None].numpy())]
    assert torch.equal(fitted[0], fitted[1])
    assert torch.equal(fitted[0], fitted[2])
    assert Stream.of(x, label=y[:, None]).label.tolist() == y.tolist()
