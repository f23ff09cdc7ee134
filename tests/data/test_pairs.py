"""Columns ``pair`` and ``side``: items that are read several times, after different prompts."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cli_case import run_words
from sonde.core.batch import word_of
from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.core.stream import Stream
from sonde.data import load, open_arrays, open_inputs
from sonde.data.columns import are_pairs
from sonde.data.listing import pick
from sonde.detect import ContrastProbe
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.reading.read import read


def only(inputs) -> tuple[Any, torch.Tensor]:
    (batch,) = inputs.batches(0, len(inputs))
    return batch, batch.order.argsort()


ITEMS = [
    {"text": "ab", "pair": "x", "side": 0},
    {"text": "cde", "pair": "x", "side": "1"},
    {"text": "f", "pair": 7, "side": 4},
    {"text": "gh", "pair": None, "side": None},
]


@pytest.mark.truth("the hash of the pair's text, and the numbers as they stand")
def test_items_know_their_pair_and_side(gpt2, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps(i) for i in ITEMS))
    for data in (ITEMS, path):
        batch, order = only(open_inputs(load(gpt2), data))
        assert batch.side[order].tolist() == [0, 1, 4, -1]
        assert batch.pair[order].tolist() == [word_of(b"x"), word_of(b"x"), word_of(b"7"), 0]
    stream = read(str(gpt2), path)
    (rows,) = stream
    assert sorted(rows.column("side", stream.schema[0].key).tolist()) == [-1, 0, 1, 4]


@pytest.mark.truth("the pairs as they stand")
def test_pairs_are_groups_where_none_are_given(gpt2):
    items = [*ITEMS, {"text": "i", "pair": 7, "side": None}, {"text": "jk", "pair": 7, "side": -1}]
    inputs = open_inputs(load(gpt2), items)
    batch, order = only(inputs)
    groups = [batch.group_keys[i] for i in order.tolist()]
    assert groups[:3] == [b"x", b"x", b"7"]
    assert groups[4] == b"7"
    assert len({groups[3], groups[5], b"x", b"7"}) == 4
    assert inputs.grouped
    named = open_inputs(load(gpt2), [{**item, "group": i} for i, item in enumerate(items)])
    assert list(named.group_keys) == [str(i).encode() for i in range(len(items))]


@pytest.mark.truth("counts of the pairs on each side of the split")
def test_no_pair_is_split_between_fit_and_held():
    n = 200
    pair, side = torch.arange(2 * n) % n, torch.arange(2 * n) // n
    x = torch.randn(2 * n, 3, generator=torch.Generator().manual_seed(0))
    stream = Stream.of(x, pair=pair, side=side)
    found = fit(ContrastProbe(method="crc"), stream, progress=False)
    assert found.split is not None
    held = torch.cat([found.split.is_held(b.split_draw) for b in stream])
    assert torch.equal(held[:n], held[n:])
    result = found.result("contrast_probe")
    assert result.n == int((~held[:n]).sum())
    assert result.calibration.n == int(held[:n].sum())
    alone = Stream.of(x, pair=torch.zeros(2 * n), side=torch.full((2 * n,), -1))
    assert len(set(alone.group_keys)) == 2 * n


def test_other_columns_of_these_names_are_left_alone(gpt2):
    for items in (
        [{"text": "ab", "pair": "x", "side": "left"}],
        [{"text": "ab", "pair": "x"}],
        [{"text": "ab", "side": 1}],
    ):
        batch, _ = only(open_inputs(load(gpt2), items))
        assert batch.side is None
        assert batch.pair is None
    assert are_pairs({"pair": ["a"], "side": [None]})
    assert not are_pairs({"pair": ["a"], "side": [0.5]})


def test_they_are_no_features_and_enter_the_fingerprint():
    model = Model(nn.Linear(2, 2))
    items = [{"a": 1.0, "b": 2.0, "pair": 0, "side": s} for s in (0, 1)]
    inputs = open_inputs(model, items)
    batch, order = only(inputs)
    assert batch.args[0].shape == (2, 2)
    assert batch.side[order].tolist() == [0, 1]
    other = open_inputs(model, [{**i, "side": 1 - i["side"]} for i in items])
    assert other.fingerprint != inputs.fingerprint
    some = pick(inputs.listing, 1, 0)
    assert some.side.tolist() == [int(some.row[0])]


def test_errors_name_the_item(gpt2):
    model = load(gpt2)
    many = [{"text": f"a{i}", "pair": i, "side": 0} for i in range(300)]
    with pytest.raises(InputError, match="of at least -1 in column 'side', got -2"):
        open_inputs(model, [{"text": "a", "pair": 1, "side": -2}])
    with pytest.raises(InputError, match="in column 'pair' for each value in 'side'"):
        open_inputs(model, [{"text": "a", "pair": None, "side": 0}])
    with pytest.raises(InputError, match=r"of at least -1 in column 'side', got 'x'\. Fix it"):
        open_inputs(model, [*many, {"text": "b", "pair": 1, "side": "x"}])
    skipped = open_inputs(model, [*many, {"text": "b", "pair": 1, "side": "x"}], skip_bad=True)
    assert (len(skipped), skipped.n_skipped) == (300, 1)
    assert skipped.listing.side.tolist() == [0] * 300


@pytest.mark.truth("the arrays as they stand")
def test_feature_arrays_have_them_too(tmp_path):
    x, side = np.random.default_rng(0).normal(size=(6, 3)), np.array([0, 1, 0, 1, -1, -1])
    np.savez(tmp_path / "f.npz", x=x, side=side, pair=np.arange(6) // 2)
    stream = open_arrays(tmp_path / "f.npz")
    assert [s.key for s in stream.schema] == ["x"]
    (batch,) = stream
    assert batch.side is not None
    assert batch.pair is not None
    assert batch.side.tolist() == side.tolist()
    assert batch.pair[0] == batch.pair[1] != batch.pair[2]


@pytest.mark.slow
def test_contrasts_of_a_model_from_the_command_line(gpt2, tmp_path):
    rng, rows = np.random.default_rng(0), []
    for i in range(40):
        answer = "".join(rng.choice(list("abc"), 4))
        for side, prompt in enumerate(("use", "not", "me", "me+", "true", "lie")):
            rows.append({"text": f"{prompt} {i}:{answer}", "pair": i, "side": side, "label": None})
    for i in range(120):
        wrong = i % 2
        answer = "".join(rng.choice(list("xyz" if wrong else "abc"), 4))
        rows.append({"text": f"q {i}:{answer}", "pair": 100 + i, "side": -1, "label": wrong})
    for row in rows:
        row |= {"start": row["text"].index(":") + 1, "end": len(row["text"]), "group": row["pair"]}
    path, probe = tmp_path / "answers.jsonl", tmp_path / "gaps.sonde"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    span = ("--span", "start,end")
    ran = run_words("fit", "feature_gaps", gpt2, path, "-o", probe, *span)
    assert ran.code == 0, ran.err
    fitted = Fitted.load(probe)
    assert {s["reducer"] for s in fitted.header["sites"]} == {"step_sources"}
    held = fitted.result("feature_gaps").calibration.n
    assert 0 < held < 60
    fresh = tmp_path / "fresh.jsonl"
    plain = [{k: r[k] for k in ("text", "start", "end")} for r in rows[-20:]]
    fresh.write_text("\n".join(json.dumps(row) for row in plain))
    ran = run_words("score", probe, gpt2, fresh, *span, "--json")
    assert ran.code == 0, ran.err
    assert len(ran.json()) == 20
    assert all(0 <= r["score"] <= 1 and 0 < r["p"] <= 1 for r in ran.json())
    assert torch.isfinite(fitted.result("feature_gaps").scorer.weight).all()
