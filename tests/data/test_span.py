"""Texts of which one part counts: its tokens by columns or delimiters, and rows made of them."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.site import Reducer
from sonde.data import load, open_inputs
from sonde.run.reading.read import read
from sonde.tap import live_stream

TEXTS = ["ab<t>cde</t>f", "x<t>yy</t>", "pq<t>r</t><t>"]
ENDS = [(5, 12), (4, 10), (5, 10)]  # after <t>, after the first </t> after it


def only(inputs) -> tuple[Any, Tensor]:
    (batch,) = inputs.batches(0, len(inputs))
    return batch, batch.order.argsort()


def by_columns() -> list[dict[str, Any]]:
    return [{"text": t, "a": i, "b": j} for t, (i, j) in zip(TEXTS, ENDS, strict=True)]


@pytest.mark.truth("bytes counted by hand")
@pytest.mark.parametrize("span", ["<t>,</t>", ("a", "b")])
def test_tokens_of_the_part(gpt2, span):
    batch, order = only(open_inputs(load(gpt2), by_columns(), span=span))
    segment = batch.segment[order]
    for row, (start, end) in zip(segment.tolist(), ENDS, strict=True):
        assert row == [0 if start <= i < end else -1 for i in range(len(row))]
    assert bytes(batch.kwargs["input_ids"][order][1, 4:10].tolist()) == b"yy</t>"


@pytest.mark.truth("words and characters counted by hand")
def test_words_and_special_tokens(bert, tmp_path):
    path = tmp_path / "t.jsonl"
    items = [{"text": "the mat sat on", "start": 4, "end": "11"}, {"text": "dog on", "start": 4,
             "end": 6}]  # fmt: skip
    path.write_text("".join(json.dumps(i) + "\n" for i in items))
    batch, order = only(open_inputs(load(bert), path, span="start,end"))
    assert batch.segment[order].tolist() == [[-1, -1, 0, 0, -1, -1], [-1, -1, 0, -1, -1, -1]]


@pytest.mark.truth("the two ends of a letter of two bytes")
def test_characters_are_not_bytes(gpt2):
    items = [{"text": "äöü", "a": 1, "b": 2}]
    batch, _ = only(open_inputs(load(gpt2), items, span="a,b"))
    assert batch.segment.tolist() == [[-1, -1, 0, 0, -1, -1]]


def _states(model, text):
    """Return the states of every token of one text alone."""
    ids, seen = torch.tensor([list(text.encode())]), []
    block = model.module.get_submodule("transformer.h.1")
    hook = block.register_forward_hook(lambda _m, _a, out: seen.append(out))
    with torch.no_grad():
        model.module(ids)
    hook.remove()
    found = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    return found.reshape(ids.shape[1], -1)


@pytest.mark.truth("the model's states of each text alone, subtracted and averaged by hand")
@pytest.mark.parametrize("reducer", ["step_deltas", "step_sources", "steps", "step_ends", "auto"])
def test_rows_of_the_part(gpt2, reducer):
    model = load(gpt2)
    inputs = open_inputs(model, TEXTS, span="<t>,</t>", batch_size=2)
    stream = live_stream(model, inputs, "transformer.h.1", reducer)
    key, rows = stream.schema[0].key, {}
    for batch in stream:
        assert batch.position[key].tolist() == [0] * len(batch)
        for example, row in zip(batch.example[key].tolist(), batch.rows[key], strict=True):
            rows[int(batch.order[example])] = row
    for i, (text, (start, end)) in enumerate(zip(TEXTS, ENDS, strict=True)):
        states = _states(model, text)
        want = {
            "step_deltas": states[end - 1] - states[start - 1],
            "step_sources": states[start - 1 : end - 1].mean(0),
            "step_ends": states[end - 1],
        }.get(reducer, states[start:end].mean(0))
        torch.testing.assert_close(rows[i], want, rtol=1e-4, atol=1e-5)


@pytest.mark.truth("the states of trajectories, subtracted by hand")
def test_steps_of_trajectories_have_deltas_too(gpt2):
    model = load(gpt2)
    items = [{"prompt": "ab", "steps": ["cd", "e"]}]
    stream = live_stream(model, open_inputs(model, items), "transformer.h.1", "step_deltas")
    (batch,) = stream
    states = _states(model, "ab\ncd\ne")
    want = torch.stack([states[5] - states[2], states[6] - states[5]])
    torch.testing.assert_close(batch.rows[stream.schema[0].key], want, rtol=1e-4, atol=1e-5)


def test_the_part_is_in_the_identity_and_the_fingerprint(gpt2):
    model = load(gpt2)
    first = open_inputs(model, by_columns(), span="a,b")
    moved = by_columns()
    moved[0]["a"] = 3
    assert open_inputs(model, moved, span="a,b").fingerprint != first.fingerprint
    assert first.identity()["encoding"]["span"] == ["a", "b"]
    assert open_inputs(model, by_columns()).fingerprint != first.fingerprint


def test_reading_and_reducers_know_it(gpt2):
    stream = read(str(gpt2), TEXTS, reducer="step_deltas", span="<t>,</t>")
    assert {str(s.reducer) for s in stream.schema} == {"step_deltas"}
    assert sum(len(b) for b in stream) == 3
    assert not Reducer("step_deltas").one_row


def test_errors_say_what_to_do(gpt2, bert):
    model = load(gpt2)

    def refuse(items, match, **options):
        with pytest.raises(InputError, match=match):
            list(open_inputs(model, items, **{"span": "a,b", **options}).batches(0, 9))

    row = {"text": "abcdef", "a": 1, "b": 3}
    refuse(["abc"], "the text has no '<t>'", span="<t>,</t>")
    refuse(["ab<t>c"], "the text has no '</t>' after '<t>'", span="<t>,</t>")
    refuse(
        [{**row, "b": 1}],
        r"expected 0 <= a < b <= 6 \(the number of characters of the text\), got 1",
    )
    refuse([{**row, "b": 7}], "got 1 and 7")
    refuse([{**row, "a": "one"}], "expected the number of a character in column 'a', got 'one'")
    refuse([{**row, "a": 0.5}], "expected the number of a character in column 'a', got 0.5")
    refuse([{**row, "a": None}], "expected the number of a character in column 'a', got None")
    refuse([{"text": "abcdef", "a": 1}], "has no column 'b'")
    refuse([row], "expected span as two columns or two delimiters", span="a")
    refuse([{"text": 20 * "a", "a": 1, "b": 3}], "cannot be cut into chunks; pass long='truncate'")
    refuse([{"text": 20 * "a", "a": 1, "b": 18}], "the span begins after them")
    refuse(
        [{"input_ids": [1, 2]}],
        "expected texts, since a span is a part of a text, got items of kind",
    )
    short = open_inputs(model, [{"text": 20 * "a", "a": 1, "b": 3}], span="a,b", long="truncate")
    batch, _ = only(short)
    assert batch.segment.tolist() == [[-1, 0, 0] + [-1] * 13]
    assert short.n_truncated == 1
    with pytest.raises(InputError, match="holds no token"):
        open_inputs(load(bert), [{"text": "the mat", "a": 3, "b": 4}], span="a,b")


def test_a_state_before_the_part_is_needed(gpt2):
    model = load(gpt2)
    inputs = open_inputs(model, [{"text": "abc", "a": 0, "b": 2}], span="a,b")
    for reducer in ("step_deltas", "step_sources"):
        with pytest.raises(InputError, match="expected a token before each step"):
            list(live_stream(model, inputs, "transformer.h.1", reducer))
    with pytest.raises(InputError, match=r"select a part of the text \(span=, --span\)"):
        list(live_stream(model, open_inputs(model, ["abc"]), "transformer.h.1", "step_deltas"))
