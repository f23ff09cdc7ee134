"""Rows that leave the library stand in the order of the data, whatever their lengths."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file
from torch import Tensor

import sonde
from cli_case import run_words
from models import gpt2
from sonde.core.stream import Stream
from sonde.detect import Mahalanobis
from sonde.engine.array_stream import array_stream
from sonde.store import Store, append_store, write_store
from sonde.store.exporting import export_store

N = 120
MODEL = gpt2()
SITE = "transformer.h.1:out"


def token_rows() -> list[dict[str, object]]:
    """Return texts whose lengths go up and down, so that batches by length mix them."""
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 30, (N,), generator=g).tolist()
    ids = [torch.randint(5, 60, (n,), generator=g).tolist() for n in lengths]
    return [{"input_ids": x, "label": ["cat", "dog"][i % 2], "n": i} for i, x in enumerate(ids)]


def read(rows: list[dict[str, object]], reducer: str) -> Stream:
    how = {"check": False, "sinks": "keep", "ignore_columns": "n"}
    return sonde.read(MODEL, rows, SITE, reducer, **how)  # type: ignore[arg-type]


def one_by_one(reducer: str) -> list[Tensor]:
    """Return the rows of each text, read in a call of its own."""
    streams = (read([row], reducer) for row in token_rows())
    return [next(iter(stream)).rows[SITE] for stream in streams]


@pytest.fixture(scope="module")
def live() -> Stream:
    return read(token_rows(), "mean")


@pytest.fixture(scope="module")
def truth() -> Tensor:
    return torch.cat(one_by_one("mean"))


@pytest.fixture(scope="module")
def store(live, tmp_path_factory) -> Store:
    folder = tmp_path_factory.mktemp("order") / "acts"
    return Store(write_store(live, folder, unit_size=50, columns={"n": list(range(N))}))


def assert_near(found: object, truth: Tensor) -> None:
    found = torch.from_numpy(np.asarray(found).copy()).double()
    torch.testing.assert_close(found, truth.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.truth("each text read by itself")
@pytest.mark.parametrize(
    "door",
    ["take", "who", "in_order", "gather", "npz", "safetensors", "npy", "parquet", "lance", "score"],
)
def test_row_i_belongs_to_item_i(door, live, store, truth, tmp_path):
    key, path = store.schema[0].key, tmp_path / f"a.{door}"
    written = torch.cat([batch.rows[key] for batch in store])
    assert not torch.allclose(written, truth, atol=1e-3)  # the batches are sorted by length
    if door == "take":
        assert_near(store.take(range(N)), truth)
        assert_near(store.take([119, 3, 3, 57]), truth[[119, 3, 3, 57]])
    elif door == "who":
        ids = [row["id"] for row in rows_of(store, tmp_path / "a.parquet")]
        assert [who[0] for who in store.who(range(N))] == ids
    elif door == "in_order":
        ordered = store.in_order()
        assert_near(torch.cat([batch.rows[key] for batch in ordered]), truth)
        assert torch.cat([batch.order for batch in ordered]).tolist() == list(range(N))
        again = Store(write_store(ordered, tmp_path / "again"))
        assert_near(torch.cat([batch.rows[key] for batch in again]), truth)
    elif door == "gather":
        assert_near(sonde.gather(live, progress=False).rows[key], truth)
        assert_near(sonde.gather(store, progress=False).rows[key], truth)
    elif door in ("npz", "safetensors"):
        export_store(store, path)
        arrays = np.load(path) if door == "npz" else load_file(path)
        assert_near(arrays[key.removesuffix(":out")], truth)
        assert arrays["row"].tolist() == list(range(N))
    elif door == "npy":
        export_store(store, tmp_path / "arrays")
        assert_near(np.load(tmp_path / "arrays" / f"{key.removesuffix(':out')}.npy"), truth)
    elif door in ("parquet", "lance"):
        if door == "lance":
            pytest.importorskip("lance")
        rows = rows_of(store, path)
        assert_near(np.stack([row["transformer_h_1_out"] for row in rows]), truth)
        assert [row["row"] for row in rows] == [row["n"] for row in rows] == list(range(N))
        assert [row["label_name"] for row in rows] == ["cat", "dog"] * (N // 2)
    else:
        fitted = sonde.fit(Mahalanobis(), store, progress=False)
        own = fitted.scorers["mahalanobis", key].score(truth)
        for source in (store, live):
            table = sonde.score(fitted, source, progress=False)
            assert table["row"].to_pylist() == list(range(N))
            assert_near(table["score"], own.double())


def rows_of(store: Store, path: Path) -> list[dict[str, object]]:
    export_store(store, path, rows=True, neighbors=0)
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    import lance

    return lance.dataset(str(path)).to_table().to_pylist()


@pytest.mark.slow
@pytest.mark.truth("each text read by itself")
def test_rows_of_tokens_stand_text_by_text(tmp_path):
    truth = torch.cat(one_by_one("tokens"))
    stream = read(token_rows(), "tokens")
    store = Store(write_store(stream, tmp_path / "acts"))
    assert_near(store.take(range(len(truth))), truth)
    rows = rows_of(store, tmp_path / "a.parquet")
    lengths = [len(row["input_ids"]) for row in token_rows()]  # type: ignore[arg-type]
    assert [row["row"] for row in rows] == [i for i, n in enumerate(lengths) for _ in range(n)]
    assert [row["position"] for row in rows] == [k for n in lengths for k in range(n)]


@pytest.mark.truth("the arrays that were given")
@pytest.mark.parametrize("n_sets", [1, 2])
def test_arrays_with_copies_keep_their_order(tmp_path, n_sets):
    """Copies are planned side by side, and are put back where they were."""
    x = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    x[300:] = x[:100]  # copies are planned beside their first row, in other units
    folder, whole = write_store(array_stream(x, {}, None, 0, numbered=True), tmp_path / "acts"), x
    if n_sets == 2:
        y = torch.randn(50, 5, generator=torch.Generator().manual_seed(1))
        y[40:] = y[:10]
        append_store(array_stream(y, {}, None, 0, numbered=True), folder)
        whole = torch.cat([x, y])
    store = Store(folder)
    assert not torch.equal(torch.cat([batch.rows["x"] for batch in store]), whole)
    assert torch.equal(store.take(range(len(whole))), whole)
    assert torch.equal(torch.cat([batch.rows["x"] for batch in store.in_order()]), whole)
    export_store(store, tmp_path / "a.npz")
    assert np.array_equal(np.load(tmp_path / "a.npz")["x"], whole.numpy())


@pytest.mark.slow
def test_texts_are_stored_beside_their_rows_unless_they_must_not(tmp_path):
    data = tmp_path / "d.jsonl"
    texts = ["short", "a much longer text than the first", "middling text", "x"]
    data.write_text("".join(f'{{"text": "{word}"}}\n' for word in texts))
    for name, flags in (("with", ()), ("without", ("--no-inputs",))):
        words = ("read", "sonde:stdlib", data, "--sites", "blocks.0", "-o", tmp_path / name)
        assert run_words(*words, *flags).code == 0
        assert run_words("export", tmp_path / name, "-o", tmp_path / f"{name}.parquet").code == 0
    table: pa.Table = parquet.read_table(tmp_path / "with.parquet")
    assert table["text"].to_pylist() == texts
    assert "text" not in parquet.read_table(tmp_path / "without.parquet").column_names
