"""Several tables as one set of rows."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import sonde
from sonde.core.errors import InputError
from sonde.data.early import check_data
from sonde.data.opening import open_source


def folder_of(tmp_path: Path, kind: str) -> tuple[Path, list[dict[str, object]]]:
    """Write 3 files of 5, 1 and 7 rows, and return the folder with all rows."""
    folder, every, n = tmp_path / kind, list[dict[str, object]](), 0
    folder.mkdir()
    for k, size in enumerate((5, 1, 7)):
        rows = [{"text": f"text {n + i}", "n": n + i} for i in range(size)]
        n, every = n + size, every + rows
        path = folder / f"part-{k}.{kind}"
        if kind == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            parquet.write_table(pa.Table.from_pylist(rows), path)
    (folder / "_SUCCESS").touch()
    return folder, every


@pytest.mark.truth("the rows that were written")
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", ["folder", "pattern", "list", "paths"])
def test_files_are_read_one_after_the_other(tmp_path, kind, form):
    folder, every = folder_of(tmp_path, kind)
    names = sorted(str(p) for p in folder.glob("part-*"))
    forms = {"folder": folder, "pattern": f"{folder}/part-*.{kind}", "list": names}
    data = {**forms, "paths": [Path(name) for name in names]}[form]
    check_data(data, ["text"])
    source, _ = open_source(data)
    assert list(source.rows()) == every
    for start, stop in ((0, 13), (3, 8), (12, 13), (4, 5)):
        assert source.take(start, stop) == every[start:stop]
    assert source.place(6).startswith(f"part-2.{kind}")
    assert source.numbers(np.arange(13)).tolist() == list(range(13))


def test_broken_lines_of_earlier_files_are_counted(tmp_path):
    for k, text in enumerate(('{"text": "a"}\n{\n{"text": "b"}\n', '{"text": "c"}\n')):
        (tmp_path / f"{k}.jsonl").write_text(text)
    source, _ = open_source(str(tmp_path / "*.jsonl"), skip_bad=True)
    assert [row["text"] for row in source.rows()] == ["a", "b", "c"]
    assert (source.n_bad, source.numbers(np.arange(3)).tolist()) == (1, [0, 2, 3])


@pytest.mark.slow
def test_a_list_of_files_is_no_list_of_texts(tmp_path):
    folder, every = folder_of(tmp_path, "jsonl")
    names = sorted(str(p) for p in folder.glob("*.jsonl"))
    stream = sonde.read("sonde:stdlib", names, sites="blocks.0", reducer="mean", check=False)
    assert len(stream) == len(every)
    whole = sonde.read("sonde:stdlib", every, sites="blocks.0", reducer="mean", check=False)
    one, two = (sonde.gather(s, progress=False).last for s in (stream, whole))
    assert np.array_equal(one, two)


def test_names_that_cannot_be_meant_are_refused(tmp_path):
    folder, _ = folder_of(tmp_path, "jsonl")
    names = [str(folder / "part-0.jsonl"), str(folder / "part-9.jsonl")]
    with pytest.raises(InputError, match=r"1 of 2 files do not exist, the first is .*part-9"):
        open_source(names)
    with pytest.raises(InputError, match="no table matches the pattern"):
        open_source(f"{folder}/*.csv")
    (tmp_path / "a.txt").write_text("a text")
    with pytest.raises(InputError, match=r"names of 1 text file \(a.txt\), not their texts"):
        open_source([str(tmp_path / "a.txt")])
    assert type(open_source(["see a.txt", "b"])[0]).__name__ == "Iterated"
