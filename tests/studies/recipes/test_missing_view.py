"""Views of which one, both, or neither say the class; heads fitted by hand."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch import nn

from cli_case import run_words
from sonde import InputError, Model
from sonde_studies.recipes.missing_view import missing_view


def encoder(n_in, n_out, seed):
    torch.manual_seed(seed)
    return Model(nn.Sequential(nn.Linear(n_in, n_out), nn.Tanh()).eval())


def views(seed=0, n=520, says=(1.3, 0.9)):
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 3, (n,), generator=draw)
    a = torch.randn(n, 5, generator=draw) + says[0] * torch.eye(5)[label]
    b = torch.randn(n, 4, generator=draw) + says[1] * torch.eye(4)[label]
    rows = [{"a": x, "b": y, "label": int(c)} for x, y, c in zip(a, b, label, strict=True)]
    return rows, a, b, label.numpy()


@pytest.mark.truth("heads of scikit-learn on the states of the encoders, fitted by hand")
def test_each_fusion_has_the_accuracy_of_heads_fitted_by_hand():
    rows, a, b, label = views()
    nets = encoder(5, 7, 1), encoder(4, 6, 2)
    found = missing_view(*nets, rows, views=("a", "b"), seed=3, progress=False)
    got = {row["fusion"]: row for row in found.rows}
    with torch.no_grad():
        x, y = nets[0].module(a).double().numpy(), nets[1].module(b).double().numpy()
    kept, held = train_test_split(
        np.arange(520), test_size=0.4, stratify=[str(c) for c in label], random_state=3
    )
    x, y = ((v - v[kept].mean(0)) / v[kept].std(0) for v in (x, y))

    def accuracy(train, test):
        head = LogisticRegression(C=0.1, max_iter=500).fit(train, label[kept])
        return (head.predict(test) == label[held]).mean()

    both = np.concatenate([x, y], 1)
    gone = np.concatenate([x[held], 0 * y[held]], 1)
    assert got["three heads"]["a alone"] == pytest.approx(accuracy(x[kept], x[held]))
    assert got["three heads"]["b alone"] == pytest.approx(accuracy(y[kept], y[held]))
    assert got["one head"]["both"] == pytest.approx(accuracy(both[kept], both[held]))
    assert got["one head"]["a alone"] == pytest.approx(accuracy(both[kept], gone))


@pytest.mark.truth("a second view that says nothing")
def test_a_view_of_noise_is_not_missed():
    rows, *_ = views(seed=5, says=(2.5, 0.0))
    found = missing_view(encoder(5, 9, 1), encoder(4, 9, 2), rows, views=("a", "b"), progress=False)
    one = next(row for row in found.rows if row["fusion"] == "one head")
    assert one["a alone"] == pytest.approx(one["both"], abs=0.06)
    assert one["b alone"] < 0.5 < one["a alone"]


def test_columns_that_are_missing_are_named():
    rows, *_ = views()
    with pytest.raises(InputError, match="rows without right"):
        missing_view(encoder(5, 3, 0), encoder(4, 3, 0), rows, views=("a", "right"), progress=False)


@pytest.mark.parametrize("value", [None, float("nan"), [1.0, 2.0, 3.0, float("nan")]])
def test_a_row_without_a_view_is_named_by_the_column_of_the_user(value):
    rows, *_ = views()
    rows[7] = rows[7] | {"b": torch.tensor(value) if isinstance(value, list) else value}
    with pytest.raises(InputError, match=r"column 'b' .* first in row 7 \(counted from 0\)"):
        missing_view(encoder(5, 3, 0), encoder(4, 3, 0), rows, views=("a", "b"), progress=False)


def test_one_view_twice_is_refused():
    rows, *_ = views()
    with pytest.raises(InputError, match="expected two different views, got 'a' twice"):
        missing_view(encoder(5, 3, 0), encoder(5, 3, 0), rows, views=("a", "a"), progress=False)


def test_it_reads_two_columns_of_a_file(tmp_path, monkeypatch):
    (tmp_path / "encoders_of_a_view.py").write_text(
        "from torch import nn\n\n\ndef same():\n    return nn.Sequential(nn.Identity()).eval()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [{k: v if k == "label" else v.tolist() for k, v in r.items()} for r in views()[0]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    word = "encoders_of_a_view:same"
    ran = run_words("recipe", "missing-view", word, word, tmp_path / "rows.jsonl", "--site", "0",
                    "--views", "a", "b", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert {row["fusion"] for row in ran.json()["rows"]} >= {"one head", "three heads"}
