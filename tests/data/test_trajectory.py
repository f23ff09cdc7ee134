"""Trajectories: which token belongs to which step, what is known of the first wrong one, errors."""

import json
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from torch import Tensor

from sonde.core.errors import InputError
from sonde.data import load, open_inputs
from sonde.data.trajectory import first_error_of
from sonde.tap import live_stream

ITEMS = [
    {"id": "a", "steps": ["ab", {"text": "c"}, "de"], "label": 1, "first_error": 2, "group": "g"},
    {"id": "b", "steps": ["f", "gh"], "label": 0, "group": "g"},
    {"id": "c", "steps": [{"thought": "", "action": "", "observation": "x"}], "label": 1},
    {"id": "d", "steps": ["y", "z"]},
]


def write(path, items):
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(items), path)
    else:
        path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def only(inputs) -> tuple[Any, Tensor]:
    (batch,) = inputs.batches(0, len(inputs))
    return batch, batch.order.argsort()


@pytest.mark.truth("bytes of the steps counted by hand")
def test_every_token_knows_its_step(gpt2, tmp_path):
    inputs = open_inputs(load(gpt2), write(tmp_path / "t.jsonl", ITEMS[:2]))
    batch, order = only(inputs)
    ids = batch.kwargs["input_ids"][order]
    assert bytes(ids[0].tolist()) == b"ab\nc\nde"
    assert batch.segment[order].tolist() == [[0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 1, -1, -1, -1]]
    assert [batch.ids[i] for i in order] == ["a", "b"]
    assert batch.label[order].tolist() == [1, 0]
    assert inputs.group_keys[0] == inputs.group_keys[1]


@pytest.mark.truth("words counted by hand")
def test_words_special_tokens_and_a_prompt(bert):
    items = [{"instruction": "the mat", "steps": ["cat sat", "on"]}, {"steps": ["dog"]}]
    batch, order = only(open_inputs(load(bert), items))
    assert batch.segment[order].tolist() == [[-1, -1, -1, 0, 0, 1, -1], [-1, 0, -1, -1, -1, -1, -1]]
    assert batch.special[order].tolist()[1] == [True, False, True, False, False, False, False]


def test_what_is_known_of_the_first_wrong_step(gpt2, tmp_path):
    batch, order = only(open_inputs(load(gpt2), write(tmp_path / "t.jsonl", ITEMS)))
    assert batch.columns["first_error"][order].tolist() == [2, -1, -2, -3]
    assert batch.segment[order][2].tolist() == [0] * 14


@pytest.mark.truth("the same trajectories from JSON lines")
def test_parquet_is_read_alike(gpt2, tmp_path):
    items = [{**i, "steps": [{"text": s} for s in i["steps"]]} for i in (ITEMS[1], ITEMS[3])]
    found = [
        only(open_inputs(load(gpt2), write(tmp_path / name, items)))[0]
        for name in ("t.jsonl", "t.parquet")
    ]
    assert torch.equal(found[0].segment, found[1].segment)
    assert torch.equal(found[0].kwargs["input_ids"], found[1].kwargs["input_ids"])


@pytest.mark.truth("the model's states of each trajectory alone, pooled by hand")
@pytest.mark.parametrize("reducer", ["auto", "steps", "step_ends"])
def test_rows_are_steps_given_what_came_before(gpt2, reducer):
    model = load(gpt2)
    items = [{"steps": ["ab", "c", "def"]}, {"steps": ["gh", "i"]}]
    stream = live_stream(model, open_inputs(model, items), "transformer.h.1", reducer)
    (batch,) = stream
    key = stream.schema[0].key
    place = list(zip(batch.example[key].tolist(), batch.position[key].tolist(), strict=True))
    want = {}
    for n, item in enumerate(items):
        ids = torch.tensor([list("\n".join(item["steps"]).encode())])
        seen: list[Any] = []

        def keep(_module: Any, _args: Any, out: Any, seen: list[Any] = seen) -> None:
            seen.append(out[0] if isinstance(out, tuple) else out)

        block = model.module.get_submodule("transformer.h.1")
        hook = block.register_forward_hook(keep)
        with torch.no_grad():
            model.module(ids)
        hook.remove()
        states, start = seen[0].reshape(ids.shape[1], -1), 0
        for step, text in enumerate(item["steps"]):
            stop = start + len(text) + (step < len(item["steps"]) - 1)
            part = states[start:stop]
            want[n, step] = part[-1] if reducer == "step_ends" else part.mean(0)
            start = stop
    assert sorted((int(batch.order[e]), p) for e, p in place) == sorted(want)
    for row, (e, p) in zip(batch.rows[key], place, strict=True):
        torch.testing.assert_close(row, want[int(batch.order[e]), p], rtol=1e-4, atol=1e-5)


def test_a_trajectory_that_is_too_long_is_refused_or_loses_its_last_steps(gpt2):
    items = [{"steps": ["abcdefg", "hijkl", "mnopqr"], "first_error": 2}, {"steps": ["ab"]}]
    with pytest.raises(InputError, match="cannot be cut into chunks"):
        open_inputs(load(gpt2), items)
    inputs = open_inputs(load(gpt2), items, long="truncate")
    batch, order = only(inputs)
    assert batch.segment[order][0].tolist() == [0] * 8 + [1] * 6
    assert batch.columns["first_error"][order].tolist() == [-1, -3]
    assert batch.truncated[order].tolist() == [6, 0]
    with pytest.raises(InputError, match="the first step does not fit into the 16 tokens"):
        open_inputs(load(gpt2), [{"steps": ["a" * 20, "b"]}], long="truncate")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"steps": []}, "a trajectory has no step"),
        ({"steps": ["a", " "]}, "step 1 has no text"),
        ({"steps": [{"verdict": "a"}]}, "step 0 has no text"),
        ({"steps": [{"text": 3}]}, "step 0 has no text"),
        ({"steps": "ab"}, "expected a list of steps, got str"),
        ({"steps": ["a"], "first_error": 1}, "one of the steps 0 to 0"),
        ({"steps": ["a"], "first_error": 0.5}, "one of the steps 0 to 0"),
        ({"steps": ["a"], "label": 0, "first_error": 0}, "contradict each other"),
        ({"steps": ["a"], "label": 1, "first_error": -1}, "contradict each other"),
        ({"steps": ["a"], "label": "bad"}, r"expected label 0 \(correct\) or 1 \(wrong\)"),
    ],
)
def test_broken_trajectories_are_named(gpt2, item, message):
    with pytest.raises(InputError, match=f"item 1 of .*{message}"):
        open_inputs(load(gpt2), [{"steps": ["fine"]}, item])
    kept = open_inputs(load(gpt2), [{"steps": ["fine"]}, item], skip_bad=True)
    assert len(kept) == 1
    assert kept.n_skipped == 1


def test_what_is_known_enters_the_fingerprint(gpt2):
    plain = {"steps": ["ab", "c"], "label": 1}
    found = {
        open_inputs(load(gpt2), [{**plain, **more}]).fingerprint
        for more in ({}, {"first_error": 0}, {"first_error": 1})
    }
    assert len(found) == 3


@pytest.mark.truth("written out by hand")
def test_verdict_and_place_together():
    cases = {(0, None): -1, (1, None): -2, (None, None): -3, (None, -1): -1, (None, 3): 3}
    cases |= {("1", 0): 0, (False, -1): -1, (-1, None): -3, (1.0, 2.0): 2}
    assert {k: first_error_of(k[0], k[1], 4) for k in cases} == cases


def test_reducer_needs_steps(gpt2):
    model = load(gpt2)
    stream = live_stream(model, open_inputs(model, ["abc"]), "transformer.h.1", "steps")
    with pytest.raises(
        InputError, match="Reducer 'steps': expected inputs that are divided into steps"
    ):
        list(stream)
