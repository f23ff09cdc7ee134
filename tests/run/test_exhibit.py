"""Parts of examples and their scores: equal to those of `sonde.score`; inputs only if asked."""

# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from narrow import present
from sonde import load
from sonde.core import Stream
from sonde.data.pieces import texts_of
from sonde.data.shipped import model_directory
from sonde.detect import Mahalanobis, PaDiM
from sonde.findings.inputs import input_of
from sonde.report.scores import scores_to_html
from sonde.run.fitting.fit import fit
from sonde.run.reading.read import read
from sonde.run.scoring.exhibit import Exhibits, hashed_id, places
from sonde.run.scoring.score import score
from sonde.run.scoring.unusual import most_unusual
from sonde.tap.streams.live import LiveStream

QUIET: Any = {"progress": False}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_directory("sonde:stdlib"))


@pytest.fixture(scope="module")
def patches():
    usual = read("sonde:digits", "sonde:digits/train", sites="layers.1", reducer="patches",
                 limit=120)  # fmt: skip
    fitted = fit(PaDiM(), usual, **QUIET)
    stream = read("sonde:digits", "sonde:digits/test", sites="layers.1", reducer="patches", limit=9)
    return fitted, stream


@pytest.fixture(scope="module")
def words(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=256, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=16)  # fmt: skip
    tokenizer.model_max_length = 16
    model = load(LlamaForCausalLM(config), processor=tokenizer)
    rows = [{"text": f"line {i} of é text {i * i}"} for i in range(12)]
    trajectories = [{"steps": [f"s{i}", "a + b", "c"]} for i in range(8)]
    return model, rows, trajectories


@pytest.mark.truth("scores of the same patches by sonde.score")
def test_patches_have_the_scores_of_their_rows(patches):
    fitted, stream = patches
    table = score(fitted, stream, **QUIET)
    rows = score(fitted, stream, reduction="rows", **QUIET).to_pylist()
    looked = Exhibits(fitted, stream)
    for line in most_unusual(table, 3)["padim"]:
        found = looked.of(line)
        mine = {r["position"]: r["score"] for r in rows if r["id"] == line["id"]}
        assert dict(zip(found.position, found.score, strict=True)) == pytest.approx(mine, rel=1e-5)
        assert max(found.score) == pytest.approx(line["score"], rel=1e-5)
        assert found.grid == [(p // 4, p % 4) for p in found.position]
        assert found.kind == "image"
        assert found.pixels is None


@pytest.mark.slow
@pytest.mark.truth("the lines of the file that was written")
def test_a_page_names_the_line_of_the_file_unless_ids_are_hashed(words, tmp_path):
    model, file = words[0], tmp_path / "lines.jsonl"
    file.write_text("".join(json.dumps({"text": f"text {i * i}"}) + "\n" for i in range(12)))
    stream = read(model, file, sites="model.layers.0", reducer="mean")
    fitted = fit(Mahalanobis(), stream, **QUIET)
    table = score(fitted, stream, **QUIET)
    looked, hashed = Exhibits(fitted, stream), Exhibits(fitted, stream, hashed=True)
    for line in table.to_pylist():
        assert looked.of(line).place == f"line {line['row'] + 1}"
        assert hashed.of(line | {"id": hashed_id(line["id"])}).place == f"row {line['row']}"
    page = re.sub("</?span[^>]*>", "", scores_to_html(table, looked, examples=12))
    assert "<code>line 3</code>" in page


@pytest.mark.truth("scikit-learn's digits, up to scale")
def test_the_image_is_there_only_if_asked_for(patches):
    from sklearn.datasets import load_digits

    fitted, stream = patches
    line = score(fitted, stream, **QUIET).to_pylist()[4]
    pixels = Exhibits(fitted, stream, inputs=True).of(line).pixels
    x = pixels[0].numpy()
    x = (x - x.min()) / (x.max() - x.min())
    digits: Any = load_digits()
    images = digits.images / 16
    gap = np.sort(np.abs(images - x * images.max((1, 2), keepdims=True)).max((1, 2)))
    assert gap[0] <= 0.5 / 255 + 1e-6  # kept in eight bits
    assert gap[1] > 1 / 16 - 1e-6


@pytest.mark.truth("the text cut by the byte-level tokenizer; scores by sonde.score")
def test_tokens_of_the_right_chunk(words, tokenizer):
    model, rows, _ = words
    stream = read(model, rows, sites="model.layers.0", reducer="tokens", text_column="text")
    fitted = fit(Mahalanobis(), stream, **QUIET)
    table = score(fitted, stream, **QUIET)
    line = next(r for r in table.to_pylist() if r["position"] == 17)
    found = Exhibits(fitted, stream, inputs=True).of(line)
    assert (found.kind, found.first) == ("text", 16)
    text = next(r["text"] for r in rows
                if dict(places(read(model, [r], sites="model.layers.0", text_column="text")))
                .get(line["id"]))  # fmt: skip
    assert "".join(found.pieces) == text.encode()[16:32].decode()
    mine = {r["position"]: r["score"] for r in table.to_pylist() if r["id"] == line["id"]}
    for at, value in zip(found.position, found.score, strict=True):
        assert value == pytest.approx(mine[at], rel=1e-4)
    bare = Exhibits(fitted, stream).of(line)
    assert bare.pieces == ()
    assert bare.score == pytest.approx(found.score)


@pytest.mark.slow
@pytest.mark.truth("the scores of sonde.score and the texts of its batches")
def test_sampled_texts_are_those_that_were_scored(words, tokenizer):
    model, _, _ = words
    prompts = [{"text": f"{'a' * (i % 3)}{i}"} for i in range(12)]
    stream = read(model, prompts, sites="model.layers.0", reducer="tokens", batch_size=5,
                  text_column="text", generate="max_new_tokens=6,do_sample=True")  # fmt: skip
    assert isinstance(stream, LiveStream)
    fitted = fit(Mahalanobis(), stream, reduction="max", **QUIET)
    texts = {}
    for raw in stream.inputs.batches(0, len(stream)):
        given = raw.kwargs["input_ids"], present(raw.mask)
        for name, ids, mask in zip(raw.ids, *given, strict=True):
            texts[name] = "".join(texts_of(ids[mask].tolist(), tokenizer))
    looked = Exhibits(fitted, stream, inputs=True)
    for line in score(fitted, stream, **QUIET).to_pylist():
        found = looked.of(line)
        assert max(found.score) == pytest.approx(line["score"], rel=1e-4)
        assert "".join(found.pieces) == texts[line["id"]]
        assert input_of(stream, line["row"]) == texts[line["id"]]


@pytest.mark.truth("the steps of the data")
def test_steps(words):
    model, _, trajectories = words
    stream = read(model, trajectories, sites="model.layers.0")
    fitted = fit(Mahalanobis(), stream, calibrate=0.0, **QUIET)
    line = score(fitted, stream, **QUIET).to_pylist()[1]
    found = Exhibits(fitted, stream, inputs=True).of(line)
    assert found.kind == "steps"
    assert [p.strip() for p in found.pieces][1:] == ["a + b", "c"]
    assert list(found.position) == [0, 1, 2]
    assert found.score[line["position"]] == pytest.approx(line["score"], rel=1e-4)


@pytest.mark.truth("the largest entries by numpy")
def test_plain_rows():
    x = torch.randn(40, 20, generator=torch.Generator().manual_seed(0))
    x[3, 5] = torch.nan
    stream = Stream.of(x)
    fitted = fit(Mahalanobis(), Stream.of(x[4:]), **QUIET)
    table = score(fitted, stream, **QUIET)
    lines = table.to_pylist()
    looked = Exhibits(fitted, stream, inputs=True)
    found = looked.of(lines[7])
    order = np.argsort(-np.abs(x[7].numpy()), kind="stable")[:12]
    assert [u for u, _ in found.values] == order.tolist()
    assert [v for _, v in found.values] == pytest.approx(x[7].numpy()[order].tolist())
    worst = looked.of(lines[3])
    assert worst.values[0][0] == 5
    assert Exhibits(fitted, stream).of(lines[7]).values == ()
    assert looked.of({**lines[7], "id": "unknown"}) is None
    hashed = Exhibits(fitted, stream, hashed=True)
    assert hashed.of({**lines[7], "id": hashed_id(lines[7]["id"])}).score == found.score


@pytest.mark.truth("the text itself")
@pytest.mark.parametrize("text", ["a é b", "日本語", "x\ty\n\n", "\ufffd", "🙂🙂"])
def test_pieces_of_bytes_give_the_text_again(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = texts_of(ids, tokenizer)
    assert len(found) == len(ids)
    assert "".join(found) == text
