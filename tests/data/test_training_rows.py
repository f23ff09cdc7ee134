"""Rows of fine-tuning data are read whole: prompt and answer, both sides, a chat, Alpaca's form."""

import pytest

import sonde
from lm_twin_case import twin
from sonde.core.errors import InputError
from sonde.data import open_inputs

PAIRS = [
    {"prompt": "The film was", "chosen": " great.", "rejected": " awful."},
    {"prompt": "The book was", "chosen": " lovely.", "rejected": " poor."},
]


def texts(data: list[dict[str, object]], **options: str) -> list[str]:
    inputs = open_inputs(twin(), data, **options)
    found: dict[int, str] = {}
    for batch in inputs.batches(0, len(inputs)):
        for order, ids, real in zip(
            batch.order, batch.kwargs["input_ids"], batch.mask, strict=True
        ):
            found[int(inputs.listing.row[order])] = twin().processor.decode(ids[real])
    return [found[i] for i in sorted(found)]


def test_a_prompt_is_read_with_its_completion() -> None:
    rows = [{"prompt": "The capital of France is", "completion": " Paris."}, *[]]
    assert texts(rows) == ["The capital of France is Paris."]
    assert texts(rows, text_column="prompt") == ["The capital of France is"]


def test_messages_of_prompt_and_completion_are_one_chat() -> None:
    asked = [{"role": "user", "content": "Hello"}]
    said = [{"role": "assistant", "content": "Hi"}]
    whole = twin().processor.apply_chat_template(asked + said, tokenize=False)
    assert texts([{"prompt": asked, "completion": said}]) == [whole]


def test_preferences_are_pairs_of_labelled_texts() -> None:
    assert texts(PAIRS) == [
        "The film was awful.", "The film was great.", "The book was poor.", "The book was lovely.",
    ]  # fmt: skip
    stream = sonde.read(twin(), PAIRS, sites="model.layers.1", reducer="last", check=False)
    batches = list(stream)
    assert sorted(x for b in batches for x in b.label.tolist()) == [0, 0, 1, 1]
    assert stream.label_names == ("rejected", "chosen")
    assert len({x for b in batches for x in b.pair.tolist()}) == 2
    assert stream.grouped


def test_alpaca_rows_hold_their_output() -> None:
    row = {"instruction": "Add.", "input": "2 and 2", "output": "4"}
    (found,) = texts([row])
    assert "### Instruction:\nAdd.\n\n### Input:\n2 and 2\n\n### Response:\n4" in found
    (short,) = texts([{**row, "input": ""}])
    assert "### Input" not in short


def test_a_text_and_messages_do_not_mix() -> None:
    with pytest.raises(InputError, match="both texts, or both lists of messages"):
        texts([{"prompt": "Hello", "completion": [{"role": "assistant", "content": "Hi"}]}])
