"""A store in other formats: the same rows, read by the libraries of those formats."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file

import sonde
from models import cnn, mlp
from sonde.core.errors import InputError, StoreError
from sonde.core.state import equal
from sonde.core.stream import Stream
from sonde.data.arrays import load_arrays, texts_of
from sonde.detect import KNN, Mahalanobis
from sonde.run.fitting.fit import fit
from sonde.run.reading.read import read
from sonde.stats import HashSample
from sonde.store import KeptRows, Store, write_store
from sonde.store.exporting import describe_export, export_store
from sonde.store.exporting.parts import column_names
from sonde.store.exporting.view import plane_of, view_of

N = 300
TEXTS = ("id", "group", "label_name")


def source(**columns: Any) -> Stream:
    g = torch.Generator().manual_seed(0)
    a = torch.randn(N, 6, generator=g) @ torch.diag(torch.tensor([5.0, 3, 1, 1, 1, 1]))
    x = {"early": a, "mid.0": torch.randn(N, 4, generator=g).half(), "z": a.double() * 2}
    named = {"ids": [f"row {i}" for i in range(N)], "label": [i % 4 - 1 for i in range(N)]}
    return Stream.of(x, **{**named, **columns})


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    extra = {
        "kind": ["odd" if i % 2 else "even" for i in range(N)],
        "score": [i / 7 for i in range(N)],
    }
    folder = tmp_path_factory.mktemp("export")
    return write_store(source(), folder / "a", unit_size=64, columns=extra)


@pytest.fixture(scope="module")
def store(place) -> Store:
    return Store(place)


@pytest.fixture(scope="module")
def sheet(store, tmp_path_factory) -> pa.Table:
    path = tmp_path_factory.mktemp("sheet") / "a.parquet"
    ticks: list[int] = []
    facts = export_store(store, path, rows=True, neighbors=3, progress=ticks.append)
    assert facts["n_rows"] == N == sum(ticks)
    assert facts["size_bytes"] == path.stat().st_size
    return parquet.read_table(path)


@pytest.mark.truth("the arrays that were stored")
def test_parquet_holds_ids_columns_and_rows(sheet):
    rows = source().rows  # type: ignore[attr-defined]
    assert sheet["id"].to_pylist() == [f"row {i}" for i in range(N)]
    assert sheet["label"].to_pylist() == [i % 4 - 1 if i % 4 else None for i in range(N)]
    assert sheet["kind"].to_pylist()[:2] == ["even", "odd"]
    assert sheet["score"].to_pylist() == [i / 7 for i in range(N)]
    names = {"early": "early", "mid.0": "mid_0", "z": "z"}
    for key, name in names.items():
        found = np.stack(sheet[name].to_numpy())
        assert found.dtype == rows[key].numpy().dtype
        np.testing.assert_array_equal(found, rows[key].numpy())
        assert sheet.schema.field(name).metadata[b"sonde.site"] == key.encode()
    said = json.loads(sheet.schema.metadata[b"sonde"])
    assert (said["n_rows"], said["columns"], said["view"]["site"]) == (N, names, "z")


@pytest.mark.truth("the header of a fit on the store")
@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".safetensors"])
def test_a_file_says_of_which_model_and_data_its_rows_are(tmp_path, suffix):
    generator = torch.Generator().manual_seed(0)
    data = list(torch.randn(20, 8, generator=generator))
    stream = sonde.read(mlp(), data, sites=["0", "2"])
    store = Store(write_store(stream, tmp_path / "acts"))
    export_store(store, tmp_path / f"a{suffix}", neighbors=2)
    told = describe_export(tmp_path / f"a{suffix}")
    header = fit(Mahalanobis(), store, calibrate=0, progress=False).header
    assert told["sites"] == ["0:out", "2:out"]
    assert told["data"] == header["data"]["fingerprint"]
    for name in ("model", "config", "dtype"):
        assert told.get(name) == header["model"][name]
    export_store(store, tmp_path / f"b{suffix}", sites=["2"], neighbors=2)
    fewer = describe_export(tmp_path / f"b{suffix}")
    assert fewer["data"] == told["data"]
    assert fewer["spec"] != told["spec"]
    export_store(Store(tmp_path / "acts"), tmp_path / f"c{suffix}", neighbors=2)
    assert describe_export(tmp_path / f"c{suffix}")["spec"] == told["spec"]


def test_more_sites_than_an_archive_has_room_for_are_not_named(store, tmp_path, monkeypatch):
    export_store(store, tmp_path / "a.npz")
    monkeypatch.setattr("sonde.store.exporting.arrays.MAX_COMMENT", 100)
    export_store(store, tmp_path / "b.npz")
    all_told, told = (describe_export(tmp_path / f"{name}.npz") for name in "ab")
    assert all_told["sites"] == ["early", "mid.0", "z"]
    assert told == {**all_told, "sites": [], "size_bytes": told["size_bytes"]}


@pytest.mark.truth("numpy: eigenvectors of the covariance")
def test_x_and_y_are_the_first_two_principal_components(sheet):
    z = source().rows["z"].numpy()  # type: ignore[attr-defined]
    centred = z - z.mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    for name, column in (("x", -1), ("y", -2)):
        vector = vectors[:, column] * np.sign(vectors[np.abs(vectors[:, column]).argmax(), column])
        np.testing.assert_allclose(sheet[name].to_numpy(), centred @ vector, rtol=1e-9, atol=1e-9)


@pytest.mark.truth("brute force: all distances")
def test_neighbours_are_the_nearest_other_rows(sheet):
    z = source().rows["z"].numpy()  # type: ignore[attr-defined]
    far = np.linalg.norm(z[:, None] - z[None], axis=2)
    np.fill_diagonal(far, np.inf)
    order = np.argsort(far, axis=1)[:, :3]
    found = sheet["neighbors"].to_pylist()
    assert [entry["ids"] for entry in found] == order.tolist()
    near = np.take_along_axis(far, order, 1)
    np.testing.assert_allclose([entry["distances"] for entry in found], near, rtol=1e-5)
    assert sheet["neighbor_ids"].to_pylist()[7] == [f"row {i}" for i in order[7]]


@pytest.mark.truth("stats.HashSample over the same rows")
def test_a_view_of_a_part_takes_the_hash_sample(store):
    sample, state = HashSample(40), None
    for batch in store:
        draws = {n: batch.column(n, "early") for n in ("draw", "group", "group_draw")}
        mine = sample.observe(batch.rows["early"].double(), **draws)
        state = mine if state is None else sample.merge(state, mine)
    assert state is not None
    view = view_of(store, "early", 40, 2)
    assert torch.equal(view.rows, state.rows)
    assert torch.equal(store.take(view.number, "early").double(), state.rows)
    assert list(view.ids) == [f"row {i}" for i in view.number.tolist()]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("case", ["ids", "content", "groups", "hidden groups", "tokens", "nan"])
@pytest.mark.truth("a fit on the store")
def test_a_fit_on_the_arrays_is_that_on_the_store(tmp_path, suffix, case):
    columns = {
        "ids": {},
        "content": {"ids": None},
        "groups": {"group": [f"g {i // 7}" for i in range(N)]},
        "hidden groups": {"group": [bytes([i // 7, 255, 0, 0]) for i in range(N)]},
        "tokens": {"ids": [f"d{i // 5}" for i in range(N)], "position": [i % 5 for i in range(N)]},
        "nan": {"ids": None},
    }[case]
    stream = source(**columns)
    if case == "nan":
        stream.rows["mid.0"][[4, 90]] = torch.nan  # type: ignore[attr-defined]
    stored = Store(write_store(stream, tmp_path / "a"))
    export_store(stored, tmp_path / f"b{suffix}")
    back = read("-", tmp_path / f"b{suffix}")
    methods = [Mahalanobis(), KNN(k=3, m=50)]
    one, two = (fit(methods, s, progress=False) for s in (stored, back))
    assert one.names == two.names
    assert one.states.keys() == two.states.keys()
    assert all(equal(one.states[k], two.states[k]) for k in one.states)


@pytest.mark.truth("torch: the bits of bfloat16")
def test_bfloat16_keeps_its_bits_or_its_values(tmp_path):
    x = torch.randn(50, 3).bfloat16()
    stored = Store(write_store(Stream.of(x), tmp_path / "a"))
    export_store(stored, tmp_path / "b.safetensors")
    found = load_file(tmp_path / "b.safetensors")["x"]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found.view(torch.int16), x.view(torch.int16))
    export_store(stored, tmp_path / "b.npz")
    np.testing.assert_array_equal(np.load(tmp_path / "b.npz")["x"], x.float().numpy())
    export_store(stored, tmp_path / "b.parquet", rows=True, neighbors=0)
    found = np.stack(parquet.read_table(tmp_path / "b.parquet")["x_2"].to_numpy())
    np.testing.assert_array_equal(found, x.float().numpy())


def test_rows_that_are_not_finite_have_no_place(tmp_path):
    x = torch.randn(30, 3)
    x[4, 1], x[9, 0] = torch.nan, torch.inf
    stored = Store(write_store(Stream.of(x), tmp_path / "a"))
    export_store(stored, tmp_path / "b.parquet", neighbors=2)
    found = parquet.read_table(tmp_path / "b.parquet")
    for name in ("x", "y", "neighbors", "neighbor_ids"):
        assert [i for i, v in enumerate(found[name].to_pylist()) if v is None] == [4, 9]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".safetensors"])
def test_few_rows(tmp_path, n, suffix):
    stored = Store(write_store(Stream.of(torch.randn(n, 1)), tmp_path / "a"))
    assert export_store(stored, tmp_path / f"b{suffix}")["n_rows"] == n


@pytest.mark.truth("brute force: all distances")
def test_lance_holds_the_rows_and_finds_near_ones(store, tmp_path):
    lance = pytest.importorskip("lance")
    path = tmp_path / "b.lance"
    facts = export_store(store, path)
    found = lance.dataset(str(path))
    assert found.count_rows() == facts["n_rows"] == N
    table = found.to_table(columns=["id", "kind", "mid_0"])
    assert table["id"].to_pylist() == [f"row {i}" for i in range(N)]
    rows = source().rows  # type: ignore[attr-defined]
    np.testing.assert_array_equal(np.stack(table["mid_0"].to_numpy()), rows["mid.0"].numpy())
    assert {index.field_names[0] for index in found.describe_indices()} == {"early", "mid_0", "z"}
    early = rows["early"].numpy()
    query = {"column": "early", "q": early[17], "k": 5, "nprobes": 100}
    near = found.to_table(columns=["id", "_distance"], nearest=query)
    order = np.argsort(((early - early[17]) ** 2).sum(1))[:5]
    assert near["id"].to_pylist() == [f"row {i}" for i in order]
    assert [p.name for p in tmp_path.iterdir()] == ["b.lance"]
    with pytest.raises(StoreError, match=r"b\.lance exists"):
        export_store(store, path)


@pytest.mark.truth("brute force: the distances of the finite rows")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("odd", [torch.nan, torch.inf, 1e20])
def test_no_search_finds_rows_that_are_not_finite(tmp_path, dtype, odd):
    lance = pytest.importorskip("lance")
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    odd = odd * 1e280 if dtype == torch.float64 else odd  # its square is infinite in each type
    x[:9, 1] = odd
    lost = torch.full((60, 2), odd, dtype=dtype)
    source = Stream.of({"some": x, "all": lost}, ids=[f"{i}" for i in range(60)])
    stored = Store(write_store(source, tmp_path / "a"))
    export_store(stored, tmp_path / "b.lance")
    found = lance.dataset(str(tmp_path / "b.lance"))
    query = x[20].float().numpy() if dtype != torch.float64 else x[20].numpy()
    near = found.to_table(columns=["id"], nearest={"column": "some", "q": query, "k": 60})
    order = (x[9:].double() - x[20].double()).norm(dim=1).argsort() + 9
    assert near["id"].to_pylist()[:5] == [f"{i}" for i in order[:5].tolist()]
    assert {int(i) for i in near["id"].to_pylist()} == {*range(9, 60)}
    table = found.to_table()
    assert (table["some"].null_count, table["all"].null_count) == (9, 60)


@pytest.mark.parametrize("suffix", [".parquet", ".lance", ".npz", ".safetensors", ""])
def test_a_store_whose_rows_were_all_left_out_is_exported(tmp_path, suffix):
    if suffix == ".lance":
        pytest.importorskip("lance")
    patches = read(cnn(), list(torch.randn(3, 1, 8, 8)), sites="conv1", reducer="patches")
    stored = Store(write_store(KeptRows(patches, 10**9), tmp_path / "a"))
    assert stored.n_rows() == 0
    assert export_store(stored, tmp_path / f"b{suffix}")["n_rows"] == 0


def test_lance_that_is_not_installed_is_named(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(InputError, match=r"pip install 'sonde-torch\[lance"):
        export_store(store, tmp_path / "b.lance")


@pytest.mark.truth("pyarrow checks the pages")
def test_parquet_tells_bytes_that_changed(store, tmp_path):
    path = tmp_path / "b.parquet"
    export_store(store, path, rows=True, neighbors=0)
    content = bytearray(path.read_bytes())
    group = parquet.read_metadata(path).row_group(0)
    last = group.column(group.num_columns - 1)
    start = last.dictionary_page_offset or last.data_page_offset
    content[start + last.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC"):
        parquet.read_table(path, page_checksum_verification=True)


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".safetensors", ".lance"])
def test_a_damaged_store_leaves_nothing(place, tmp_path, suffix):
    import shutil

    if suffix == ".lance":
        pytest.importorskip("lance")
    copy = Path(shutil.copytree(place, tmp_path / "a"))
    path = sorted(copy.glob("rows/[!e]*/*.arrow"))[-1]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(StoreError):
        export_store(copy, tmp_path / f"b{suffix}")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("b.csv", {}, r"ends in \.parquet"),
        ("b.parquet", {"columns": ["kinds"]}, "no column 'kinds'. Did you mean kind"),
        ("b.npz", {"columns": ["kind"]}, r"\.npz carries no columns"),
        ("b.parquet", {"neighbors": -1}, "neighbors of at least 0"),
        ("b.parquet", {"sample": 1}, "sample of at least 2"),
    ],
)
def test_what_is_wrong_is_named(store, tmp_path, name, options, message):
    with pytest.raises(InputError, match=message):
        export_store(store, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_names_of_columns_never_meet():
    x = {name: torch.randn(5, 2) for name in ("x", "y.0", "y_0", "label_")}
    assert column_names(list(x), ["x"]) == {
        "x": "x_2",
        "y.0": "y_0",
        "y_0": "y_0_2",
        "label_": "label",
    }
    assert plane_of(torch.zeros(0, 3)).tolist() == [[0.0, 0.0]] * 3


@pytest.fixture(scope="module")
def two_reducers(tmp_path_factory) -> Path:
    """Means of images, and beside them all their patches."""
    images = list(torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    stream = read(cnn(), images, sites=["conv1", "conv2"], reducer="mean", further=["patches"])
    return write_store(stream, tmp_path_factory.mktemp("two") / "a")


@pytest.mark.truth("images, and their patches")
@pytest.mark.parametrize(
    ("sites", "keys", "n"),
    [
        ("conv1:out", ["conv1:out"], 20),
        ("conv1", ["conv1:out"], 20),
        (["conv1", "conv2"], ["conv1:out", "conv2:out"], 20),
        ("conv1:out|patches", ["conv1:out|patches"], 20 * 64),
        ("conv1|patches", ["conv1:out|patches"], 20 * 64),
    ],
)
def test_a_whole_name_is_one_kind_of_rows(two_reducers, tmp_path, sites, keys, n):
    facts = export_store(two_reducers, tmp_path / "a.npz", sites=sites)
    assert (facts["sites"], facts["n_rows"]) == (keys, n)


def test_a_pattern_of_several_kinds_of_rows_is_refused(two_reducers, tmp_path):
    with pytest.raises(
        InputError, match=r"got mean \(conv2:out\), patches .* kind by its full name"
    ):
        export_store(two_reducers, tmp_path / "a.npz", sites="conv?")


def test_rows_beside_others_are_not_fitted(two_reducers):
    with pytest.raises(InputError, match=r"got only rows of further reducers .*conv1:out\|patches"):
        fit(KNN(), Store(two_reducers).select(reducer="patches"), progress=False)


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ""])
def test_texts_of_arrays_are_text_or_utf8(tmp_path, ending):
    """Names beyond ASCII have more bytes than characters."""
    ids, names = [f"zoë {'x' * i}" for i in range(6)], ["groß", "klein"] * 3
    rows = zip(torch.eye(6), ids, names, "aabbüü", strict=True)
    items = [{"x": x, "id": i, "label": name, "group": group} for x, i, name, group in rows]
    given = read(mlp(6), items, sites="0", group_column="group")
    write_store(given, tmp_path / "rows")
    export_store(tmp_path / "rows", tmp_path / f"a{ending}")
    if ending == ".safetensors":
        held = load_arrays(tmp_path / "a.safetensors")
        assert all(held[name].dtype == torch.uint8 for name in ("id", "group", "label_name"))
        arrays = {name: np.asarray(texts_of(x)) for name, x in held.items() if name in TEXTS}
    elif ending:
        arrays = dict(np.load(tmp_path / "a.npz", allow_pickle=False))
    else:
        arrays = {name: np.load(tmp_path / "a" / f"{name}.npy") for name in TEXTS}
    assert {arrays[name].dtype.kind for name in TEXTS} == {"U"}
    assert arrays["id"].tolist() == ids
    assert arrays["group"].tolist() == [*"aabbüü"]
    assert arrays["label_name"].tolist() == names
