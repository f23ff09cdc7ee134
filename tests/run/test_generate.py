"""Prompts that a model continues, as a user types them."""

import pytest
from transformers import GenerationConfig

import sonde
from sonde.core import InputError
from sonde.run.passes.crew import Crew
from sonde.run.passes.storing import filled_by
from sonde.store import write_store
from sonde.store.writing import StoreWriter

PROMPTS = [{"text": "def main("}, {"text": "import os"}, {"text": "class Reader:"}]
MODEL = "sonde:stdlib"


@pytest.mark.slow
@pytest.mark.truth("lengths of prompts counted in bytes")
def test_prompts_are_read_with_what_comes_after_them():
    stream = sonde.read(
        MODEL, PROMPTS, reducer="tokens", generate="max_new_tokens=6,do_sample=True", seed=1
    )
    (batch,) = stream
    (again,) = stream
    prompt, new = batch.extra["prompt_length"], batch.extra["generated_length"]
    assert sorted(prompt.tolist()) == sorted(len(item["text"]) for item in PROMPTS)
    key = stream.schema[0].key
    assert len(batch.rows[key]) == int((prompt + new).sum())
    assert (batch.rows[key] == again.rows[key]).all()
    assert ((batch.extra["generated"] >= 0).sum(1) == new).all()


@pytest.mark.parametrize(
    ("settings", "size"),
    [(None, 64), ("max_new_tokens=30", 32), ("max_new_tokens=30,num_beams=4", 8)],
)
def test_batches_leave_room_for_what_is_generated(monkeypatch, settings, size):
    a_token = 4 * (4 * 192 + 256)  # bytes: states of width 192 and 256 logits in float32
    monkeypatch.setattr("sonde.data.encoding.BATCH_BYTES", 64 * 30 * a_token)
    data = sonde.read(MODEL, PROMPTS, generate=settings).identity()["data"]
    assert data.get("prompts", data)["batch_size"] == size


@pytest.mark.slow
@pytest.mark.truth("the same settings by keyword")
def test_a_generation_config_is_taken_apart():
    config = GenerationConfig(max_new_tokens=100_000)
    with pytest.raises(InputError, match="new tokens within the context of 256"):
        sonde.read(MODEL, PROMPTS, generate={"generation_config": config})
    small = {"max_new_tokens": 4, "do_sample": False}
    want, found = (
        sonde.read(MODEL, PROMPTS, generate=how).identity()
        for how in (small, {"generation_config": GenerationConfig(**small)})
    )
    assert want == found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("max_new_tokens", "expected settings such as"),
        ("max_new_tokens=0", "max_new_tokens of at least 1, got 0"),
        ("max_new_tokens=2,max_new_tokens=3", "expected settings such as"),
        ("max_new_tokens=print(1)", "expected settings such as"),
        ("max_new_tokens=100000", "new tokens within the context of 256"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(settings, message):
    with pytest.raises(InputError, match=message):
        sonde.read(MODEL, PROMPTS, generate=settings)


@pytest.mark.slow
def test_memory_is_counted_for_batches_as_long_as_texts_may_become(tmp_path):
    how = {"reducer": "tokens", "sites": "model.layers.0", "batch_size": 3}
    stream = sonde.read(MODEL, PROMPTS * 10, generate="max_new_tokens=100", **how)
    with pytest.raises(
        InputError,
        match=r"rows that wait to be written .* \(batches of 3 examples, .* for a forward",
    ):
        write_store(stream, tmp_path / "acts", fill=filled_by(Crew(), memory=1))
    short = sonde.read(MODEL, PROMPTS * 10, **how)
    held = [StoreWriter(s, tmp_path / "a", 256).held_bytes(3) for s in (stream, short)]
    assert held[0] - held[1] >= 2 * 3 * 100 * 192 * 4  # two batches, 100 tokens of 192 float32


def test_pieces_of_a_text_and_arrays_are_no_prompts():
    with pytest.raises(InputError, match="longer than the context of the model"):
        sonde.read(MODEL, [{"text": "x" * 400}], generate={"max_new_tokens": 2})
    with pytest.raises(InputError, match="arrays cannot generate text"):
        sonde.read("-", "rows.npz", generate="max_new_tokens=2")
    images = sonde.read("sonde:digits", "sonde:digits/test", limit=2)
    assert len(images) == 2
    with pytest.raises(InputError, match="expected a model that generates"):
        sonde.read("sonde:digits", "sonde:digits/test", limit=2, generate="max_new_tokens=2")
