"""JSONL, CSV and Parquet: columns, random access, broken lines."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sonde.core import errors
from sonde.core.hashing import bytes_key
from sonde.data import load, open_inputs
from sonde.data import tables as tables_module
from sonde.data.tables import CsvFile, JsonLines, ParquetFile

ROWS = [
    {"text": f'row {i}, "quoted"\nsecond line é{"x" * (i % 5)}', "label": i % 3, "id": f"n{i}"}
    for i in range(300)
]


@pytest.fixture
def tables(tmp_path):
    """The same rows as JSONL, CSV, TSV and Parquet in three row groups."""
    lines = "\n".join(json.dumps(r) for r in ROWS) + "\n\n"
    (tmp_path / "t.jsonl").write_text(lines, encoding="utf-8")
    for name, separator in [("t.csv", ","), ("t.tsv", "\t")]:
        with (tmp_path / name).open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(ROWS[0]), delimiter=separator)
            writer.writeheader()
            writer.writerows(ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "t.parquet", row_group_size=100)
    return tmp_path


@pytest.mark.truth("the rows that were written")
@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.tsv", "t.parquet"])
def test_every_format_gives_the_same_rows_in_any_order(name, tables):
    path = tables / name
    source = ParquetFile(path) if name == "t.parquet" else None
    source = source or (JsonLines if name == "t.jsonl" else CsvFile)(path, False)
    kept = [{k: str(v) for k, v in r.items()} for r in source.rows()]
    expected = [{k: str(v) for k, v in r.items()} for r in ROWS]
    assert kept == expected
    for start, stop in [(0, 5), (250, 300), (90, 210), (95, 97), (97, 110), (0, 300), (299, 300)]:
        found = [{k: str(v) for k, v in r.items()} for r in source.take(start, stop)]
        assert found == expected[start:stop]


@pytest.mark.truth("the rows that were written")
def test_all_formats_give_one_listing(tables, gpt2):
    model = load(gpt2)
    found = [open_inputs(model, tables / n) for n in ("t.jsonl", "t.csv", "t.tsv", "t.parquet")]
    assert len({i.fingerprint for i in found}) == 1
    assert found[0].listing.keys[0] == b"n0"
    batch = next(found[1].batches(0, 40))
    assert set(batch.ids) <= {f"n{i}" for i in range(40)}
    assert len(open_inputs(model, tables / "t.csv", limit=7).listing.labels.values) == 7


@pytest.mark.truth("the rows that were written")
@pytest.mark.parametrize("names", [("label", "text"), ("text", "label"), ("a, b", "text")])
def test_a_byte_order_mark_before_a_quoted_header_is_no_part_of_it(names, tmp_path):
    path = tmp_path / "t.csv"
    rows = [dict(zip(names, values, strict=True)) for values in (("1", "the cat"), ("\ufeff", "2"))]
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, names, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    source = CsvFile(path, False)
    assert list(source.rows()) == rows
    assert [source.take(i, i + 1) for i in range(2)] == [rows[:1], rows[1:]]


def test_parquet_reads_only_the_row_groups_that_it_needs(tables, monkeypatch):
    opened = []
    real = pq.ParquetFile.iter_batches

    def spying(self, *args, **kwargs):
        opened.append(kwargs["row_groups"])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spying)
    source = ParquetFile(tables / "t.parquet")
    source.take(250, 260)
    source.take(260, 270)
    assert opened == [[2]]


def test_columns_by_default_and_by_name(gpt2, tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("note,kind,who\nhello,a,1\nworld,b,2\n")
    model = load(gpt2)
    with pytest.raises(errors.InputError, match="these columns could be meant: note, kind, who"):
        open_inputs(model, path)
    inputs = open_inputs(
        model, path, text_column="note", label_column="kind", id_column="who", group_column="kind"
    )
    assert (inputs.label_names, inputs.grouped) == (("a", "b"), True)
    assert inputs.group_keys == [b"a", b"b"]
    assert inputs.listing.keys == [b"1", b"2"]
    with pytest.raises(errors.InputError, match=r"no column 'nite'.*Did you mean note"):
        open_inputs(model, path, text_column="nite")
    with pytest.raises(errors.InputError, match="no column 'knd', only note, kind, who"):
        open_inputs(model, path, text_column="note", label_column="knd")
    path.write_text("words,label\nhello,a\n")
    assert open_inputs(model, path).layout.inputs == ("words",)
    for name in ("text", "content", "sentence", "prompt"):
        path.write_text(f"other,{name}\nno,yes\n")
        assert open_inputs(model, path).layout.inputs == (name,)
    for name in ("label", "labels", "target", "class", "y"):
        path.write_text(f"text,{name}\nno,yes\n")
        assert open_inputs(model, path).label_names == ("yes",)


def test_image_paths_are_relative_to_the_table(vit, tmp_path):
    from PIL import Image

    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "a.png")
    for name in ("image", "img", "file", "path", "anything"):
        table = tmp_path / f"{name}.csv"
        table.write_text(f"{name},y\nin/a.png,dog\n")
        (batch,) = open_inputs(load(vit), table).batches(0, 1)
        assert batch.label.tolist() == [1]
        assert batch.keys == [bytes_key((tmp_path / "in" / "a.png").read_bytes())]
    table.write_text("a,b\nin/a.png,in/a.png\n")
    with pytest.raises(errors.InputError, match="--image-column"):
        open_inputs(load(vit), table)
    assert len(open_inputs(load(vit), table, image_column="b")) == 1


def test_images_inside_parquet(vit, tmp_path):
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 8, 7)).save(file, "PNG")
    rows = [{"image": {"bytes": file.getvalue(), "path": None}, "label": 0}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "i.parquet")
    (batch,) = open_inputs(load(vit), tmp_path / "i.parquet").batches(0, 1)
    assert batch.keys == [bytes_key(file.getvalue())]


BROKEN = {
    "b.jsonl": (
        '{"text": "a"}\n{"text": \n\n[1]\n{"text": "b"}\n',
        "b.jsonl line 2: not valid",
    ),
    "o.jsonl": (
        '{"text": "a"}\n[1]\n{"text": 1}\n{"text": "b"}\n',
        "line 2: expected a JSON",
    ),
    "b.csv": ("text,label\na,1\nb\nc,2,3\nd,4\n", "b.csv line 3: expected 2 fields, got 1"),
    "u.csv": (b"text\na\n\xff\xfe\nb\n", "u.csv line 3: not UTF-8 text"),
    "n.jsonl": ('{"text": "a"}\n{"text": null}\n{"no": 1}\n{"text": "b"}\n', "line 2: no value in"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_lines_are_named_or_counted(name, gpt2, tmp_path):
    content, message = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(errors.InputError, match=rf"{message}.*--skip-bad"):
        open_inputs(load(gpt2), path, text_column="text")
    inputs = open_inputs(load(gpt2), path, text_column="text", skip_bad=True)
    assert len(inputs) == 2
    assert inputs.n_skipped == {"u.csv": 1}.get(name, 2)
    assert any("skipped" in note for note in inputs.notes)
    (batch,) = inputs.batches(0, 2)
    assert batch.kwargs["input_ids"].shape[0] == 2


def test_files_that_cannot_be_read(gpt2, tmp_path):
    model = load(gpt2)
    cases = {
        "e.jsonl": (b"", "is empty"),
        "blank.jsonl": (b"\n\n", "is empty"),
        "h.csv": (b"text,label\n", "is empty"),
        "t.csv": (b"text,text\na,b\n", "more than once"),
        "p.parquet": (b"PAR1 nothing", "cannot be read as a Parquet file"),
        "x.pkl": (b"x", "is a pickle"),
        "x.docx": (b"x", "expected a file that ends in one of"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(errors.InputError, match=message):
            open_inputs(model, tmp_path / name)
    with pytest.raises(errors.InputError, match=r"no such file.*e.jsnl.*Did you mean e.jsonl"):
        open_inputs(model, tmp_path / "e.jsnl")


def test_lines_longer_than_the_limit_are_refused(gpt2, tmp_path, monkeypatch):
    (tmp_path / "l.jsonl").write_text(json.dumps({"text": "x" * 500}) + "\n")
    monkeypatch.setattr(tables_module, "MAX_LINE_BYTES", 100)
    with pytest.raises(errors.InputError, match="line 1: expected at most"):
        open_inputs(load(gpt2), tmp_path / "l.jsonl")


def test_long_csv_fields_are_read_and_the_limit_is_put_back(tmp_path):
    before = csv.field_size_limit()
    (tmp_path / "l.csv").write_text("text\n" + "x" * (before + 10) + "\n")
    (row,) = CsvFile(tmp_path / "l.csv", False).rows()
    assert len(row["text"]) == before + 10
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("id_column", [None, "id"])
def test_a_file_that_changes_after_the_listing_is_noticed(id_column, gpt2, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "aaa", "id": 1}\n{"text": "bbb", "id": 2}\n')
    inputs = open_inputs(load(gpt2), path, id_column=id_column)
    path.write_text('{"text": "aaa", "id": 1}\n{"text": "bxb", "id": 2}\n')
    with pytest.raises(errors.InputError, match=r"line 2: the content has changed"):
        list(inputs.batches(0, 2))


def test_deeply_nested_json_is_an_error_not_a_crash(gpt2, tmp_path):
    (tmp_path / "d.jsonl").write_text("[" * 200_000 + "\n")
    with pytest.raises(errors.InputError, match="line 1"):
        open_inputs(load(gpt2), tmp_path / "d.jsonl")


@pytest.mark.slow
def test_a_file_is_never_in_memory_as_a_whole(t5, tmp_path):
    import tracemalloc

    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for i in range(2500):
            file.write(json.dumps({"text": f"{i} " + "x" * 4000}) + "\n")
    model = load(t5)
    open_inputs(model, ["warm"])
    tracemalloc.start()
    inputs = open_inputs(model, path)
    next(inputs.batches(500, 510))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 10e6
    assert peak < path.stat().st_size / 2


def test_damaged_pages_of_parquet_are_named(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["a", "b"] * 50, "label": [0, 1] * 50}), path)
    damaged = bytearray(path.read_bytes())
    damaged[20] ^= 255  # in the first page: the footer is whole, so the file opens
    path.write_bytes(bytes(damaged))
    source = ParquetFile(path)
    for found in (source.rows(), source.labels("text")):
        with pytest.raises(errors.InputError, match=r"t\.parquet is a damaged Parquet file"):
            list(found)
