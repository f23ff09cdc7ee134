"""Streamed Hugging Face data sets."""

import io
import pickle
import zipfile

import pytest
from PIL import Image

from sonde.core.hashing import bytes_key
from sonde.data import hub_stream, load, open_inputs
from sonde.data.opening import open_source

datasets = pytest.importorskip("datasets")

ASKED: list[int] = []


def numbers(shards):
    for start in shards:
        for i in range(start, start + 25):
            ASKED.append(i)
            yield {"text": f"text {i}", "label": i % 2}


@pytest.fixture
def streamed():
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["good", "bad"])}
    )
    starts = {"shards": list(range(0, 200, 25))}
    return datasets.IterableDataset.from_generator(numbers, features=features, gen_kwargs=starts)


@pytest.mark.truth("the rows that the shards generate")
def test_rows_are_read_from_the_nearest_state(streamed, monkeypatch):
    monkeypatch.setattr(hub_stream, "MARK_ROWS", 8)
    source, _ = open_source(streamed)
    rows = list(source.rows())
    assert [row["text"] for row in rows] == [f"text {i}" for i in range(200)]
    assert source.names_of("label") == ["good", "bad"]
    for each in (source, pickle.loads(pickle.dumps(source))):
        for start, stop in ((131, 135), (135, 160), (3, 5), (60, 62), (199, 200)):
            ASKED.clear()
            assert each.take(start, stop) == rows[start:stop]
            assert len(ASKED) <= stop - start + 25  # a generator restarts its shard, not the stream
    assert [row["text"] for row in streamed.take(2)] == ["text 0", "text 1"]


def test_long_streams_keep_few_states(streamed, monkeypatch):
    monkeypatch.setattr(hub_stream, "MARK_ROWS", 2)
    monkeypatch.setattr(hub_stream, "MOST_MARKS", 10)
    source = hub_stream.HubStream(streamed, "many")
    rows = list(source.rows())
    assert len(source._marks) <= 10
    assert all(source.take(i, i + 2) == rows[i : i + 2] for i in (150, 40, 198, 0))


@pytest.mark.truth("the order of the first pass")
def test_a_shuffled_stream_is_read_from_its_start(streamed, monkeypatch):
    """A state does not hold the buffer of a shuffle, so it leads elsewhere."""
    monkeypatch.setattr(hub_stream, "MARK_ROWS", 8)
    source, _ = open_source(streamed.shuffle(seed=1, buffer_size=30))
    rows = list(source.rows())
    assert rows[0]["text"] != "text 0"
    assert source.take(131, 135) == rows[131:135]


def test_streams_are_inputs_and_their_splits_are_chosen(streamed, gpt2):
    splits = datasets.IterableDatasetDict({"train": streamed, "test": streamed.take(3)})
    inputs = open_inputs(load(gpt2), splits)
    assert (len(inputs), inputs.source.split) == (3, "test")
    (batch,) = inputs.batches(1, 3)
    assert batch.keys == [bytes_key(b"text 1"), bytes_key(b"text 2")]


def test_images_are_hashed_as_stored_even_behind_an_address(tmp_path, vit):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(file, "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("one.png", file.getvalue())
    address = f"zip://one.png::{tmp_path / 'a.zip'}"
    rows = [{"bytes": file.getvalue(), "path": None}, {"bytes": None, "path": address}]
    features = datasets.Features({"image": datasets.Image()})
    found = datasets.Dataset.from_dict({"image": rows}, features=features).to_iterable_dataset()
    inputs = open_inputs(load(vit), found, image_size=8)
    assert inputs.listing.keys == [bytes_key(file.getvalue())] * 2
