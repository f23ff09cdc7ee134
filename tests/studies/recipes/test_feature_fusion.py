"""Fusion of encoders: heads fitted by hand, sources that say the same, bad input, the command."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch import nn

from cli_case import run_words
from sonde import InputError, Model
from sonde_studies.parts.heads import JOINED_LAYERS, OWN_LAYERS, AutoencoderCode, LinesHead
from sonde_studies.recipes.feature_fusion import JOINT, SMALL, feature_fusion


def encoder(columns, n_out, seed):
    torch.manual_seed(seed)
    map_of = nn.Linear(6, n_out)
    map_of.weight.data[:, [i for i in range(6) if i not in columns]] = 0
    return Model(nn.Sequential(map_of, nn.Tanh()).eval())


def rows(n=400, seed=0):
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 4, (n,), generator=draw)
    x = torch.randn(n, 6, generator=draw)
    x[:, 0] += 2.2 * (label % 2)  # what the first encoder sees
    x[:, 4] += 2.2 * (label // 2)  # and the second
    return x, label, [{"x": a, "label": int(c)} for a, c in zip(x, label, strict=True)]


@pytest.mark.truth("scikit-learn's logistic regression on the encoders' states, by hand")
def test_heads_are_those_fitted_by_hand():
    x, label, items = rows()
    nets = encoder({0, 1, 2}, 5, 1), encoder({3, 4, 5}, 4, 2)
    found = feature_fusion(*nets, items, seed=3, progress=False)
    got = {row["source"]: row for row in found.rows}
    y = label.numpy()
    kept, held = train_test_split(np.arange(400), test_size=0.4, stratify=y, random_state=3)
    with torch.no_grad():
        a, b = (net.module(x).double().numpy() for net in nets)

    def accuracy(s):
        z = (s - s[kept].mean(0)) / s[kept].std(0)
        head = LogisticRegression(C=0.1, max_iter=500).fit(z[kept], y[kept])
        return (head.predict(z[held]) == y[held]).mean()

    assert got["first"]["accuracy"] == pytest.approx(accuracy(a))
    assert got[JOINT]["accuracy"] == pytest.approx(accuracy(np.concatenate([a, b], 1)))
    assert found.verdict == "fuse them"
    assert [got[s]["units"] for s in ("second", JOINT, SMALL)] == [4, 9, 2]


@pytest.mark.truth("a second encoder that is the first")
def test_a_copy_adds_nothing():
    *_, items = rows(seed=4)
    net = encoder({0, 1, 2}, 5, 1)
    found = feature_fusion(net, net, items, third=net, progress=False)
    assert found.verdict == "the first alone will do"
    assert abs(float(found.value)) < 0.03
    assert {"without the second", "third"} <= {row["source"] for row in found.rows}


@pytest.mark.truth("scikit-learn's logistic regression on arrays that were joined by hand")
def test_numbers_and_lines_are_sources_beside_the_encoders():
    x, label, items = rows()
    made = torch.stack([x[:, 4].exp(), x[:, 5] ** 2], 1)
    items = [
        row | {"by hand": float(m[0]), "more": m[1:].tolist(), "left": a, "right": -a}
        for row, m, a in zip(items, made, x, strict=True)
    ]
    nets = encoder({0, 1, 2}, 5, 1), encoder({1, 2}, 4, 2)
    asked = {"numbers": ["by hand", "more"], "lines": ["left", "right"]}
    found = feature_fusion(*nets, items, **asked, seed=3, progress=False)
    got = {row["source"]: row for row in found.rows}
    y = label.numpy()
    kept, held = train_test_split(np.arange(400), test_size=0.4, stratify=y, random_state=3)
    with torch.no_grad():
        read = nets[0].module
        lines = torch.cat([read(x), read(-x)], 1).double().numpy()

    def accuracy(s):
        z = (s - s[kept].mean(0)) / s[kept].std(0)
        head = LogisticRegression(C=0.1, max_iter=500).fit(z[kept], y[kept])
        return (head.predict(z[held]) == y[held]).mean()

    assert got["numbers"]["accuracy"] == pytest.approx(accuracy(made.double().numpy()))
    assert got["lines"]["accuracy"] == pytest.approx(accuracy(lines))
    assert {"without the numbers", "without the lines"} <= got.keys()
    assert found.verdict == "fuse them"  # the second factor is in the numbers alone
    with pytest.raises(InputError, match="as many numbers in by hand, more in each row"):
        feature_fusion(*nets, [items[0] | {"more": [1, 2]}, *items[1:]], **asked, progress=False)
    holed = [*items[:3], items[3] | {"more": ["nan"]}, *items[4:]]
    with pytest.raises(InputError, match=r"NaN or infinity from the numbers in 1 of .* in row 3"):
        feature_fusion(*nets, holed, **asked, progress=False)
    with pytest.raises(InputError, match="expected hidden=0 or more, got -3"):
        feature_fusion(*nets, items, **asked, hidden=-3, progress=False)


@pytest.mark.truth("a class that two lines name together, and neither alone")
@pytest.mark.slow
def test_hidden_layers_of_each_line_read_what_a_linear_head_cannot():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=draw)
    both = (x[:, 0] > 0) ^ (x[:, 3] > 0)
    items = [
        {"x": row, "left": torch.cat([row[:3], 0 * row[:3]]), "right": row.roll(3) * 1.0,
         "label": int(c)} for row, c in zip(x, both, strict=True)
    ]  # fmt: skip
    nets = encoder({0, 1, 2}, 5, 1), encoder({0, 1, 2}, 5, 1)
    asked = {"lines": ["left", "right"], "seed": 1, "progress": False}
    assert not {OWN_LAYERS, JOINED_LAYERS} & {
        row["source"] for row in feature_fusion(*nets, items, **asked).rows
    }
    found = feature_fusion(*nets, items, hidden=12, **asked)
    got = {row["source"]: row for row in found.rows}
    assert got[JOINT]["accuracy"] < 0.62 < 0.72 < got[OWN_LAYERS]["accuracy"]
    assert got[OWN_LAYERS]["units"] == got[JOINED_LAYERS]["units"] == 20
    sizes = []
    for apart in (True, False):
        head = LinesHead((5, 5, 5, 5), 12, apart, steps=1)
        sizes.append(head.fit(np.zeros((9, 20)), np.arange(9) % 2).size)
    own = 4 * 6 * 12 + (48 + 1) * 12 + 13 * 2
    assert sizes[0] == own
    assert abs(sizes[1] - own) < 0.05 * own


def test_an_autoencoder_keeps_a_curve_that_components_lose():
    draw = np.random.default_rng(0)
    t = draw.uniform(-1, 1, 500)
    x = np.stack([np.sin(4 * t), np.cos(4 * t), np.sin(8 * t), t**3], 1)
    x = (x - x.mean(0)) / x.std(0)
    code = AutoencoderCode(1, 0).fit(x[:400]).transform(x[400:])
    assert code.shape == (100, 1)
    order = [
        abs(spearmanr(code[:, 0], t[400:])[0]),
        abs(spearmanr(PCA(1).fit_transform(x)[400:, 0], t[400:])[0]),
    ]
    assert order[0] > order[1] + 0.1
    *_, items = rows()
    nets = encoder({0, 1, 2}, 5, 1), encoder({3, 4, 5}, 4, 2)
    found = feature_fusion(*nets, items, summary="autoencoder", progress=False)
    assert {row["source"]: row["units"] for row in found.rows}[SMALL] == 2


def test_states_that_are_not_finite_are_refused():
    items = rows()[2]
    items[7]["x"] = torch.full((6,), float("nan"))
    with pytest.raises(InputError, match=r"the first encoder in 1 of 400 rows, first in row 7"):
        feature_fusion(encoder({0}, 5, 1), encoder({3}, 4, 2), items, progress=False)


def test_rows_without_labels_are_refused():
    *_, items = rows(40)
    with pytest.raises(InputError, match="60 or more labelled rows"):
        feature_fusion(encoder({0}, 3, 0), encoder({1}, 3, 0), items, progress=False)


def test_the_command_asks_it(tmp_path, monkeypatch):
    (tmp_path / "nets_to_fuse.py").write_text(
        "from torch import nn\n\n\ndef same():\n    return nn.Sequential(nn.Identity()).eval()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    lines = [json.dumps({**r, "x": r["x"].tolist()}) for r in rows()[2]]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    word = "nets_to_fuse:same"
    ran = run_words("recipe", "feature-fusion", word, word, tmp_path / "rows.jsonl",
                    "--site", "0", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert {row["source"] for row in ran.json()["rows"]} == {"first", "second", JOINT, SMALL}
