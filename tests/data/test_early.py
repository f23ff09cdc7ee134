"""Words for data that are wrong are told before a model is loaded."""

import json
import sys

import numpy as np
import pytest

from cli_case import run_words
from sonde.core.errors import InputError
from sonde.data import check_data


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "rows.csv").write_text("text,label\na,1\n")
    np.savez(tmp_path / "rows.npz", x=np.zeros((3, 2)))
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("data", "columns", "said"),
    [
        ("rows.jsnol", (), r"no such file"),
        ("row.jsonl", (), r"Did you mean rows.jsonl"),
        ("./rows", (), r"no such file or folder: ./rows"),
        ("rows.jsonl", ("txt",), r"no column 'txt', only text, label. Did you mean text"),
        ("rows.csv", (None, "text,two"), r"no column 'two'"),
        ("sonde:digits/tset", (), r"Did you mean sonde:digits/test"),
        ("empty", (), r"empty is empty"),
    ],
)
def test_what_is_not_there(here, data, columns, said):
    with pytest.raises(InputError, match=said):
        check_data(data, columns)


def test_what_may_be_there_passes(here):
    for data in ("rows.jsonl", "rows.csv", "rows.npz", "someone/dataset", "sonde:digits", [1, 2]):
        check_data(data, ["label"])


COMMANDS = ["fit knn", "scan", "read"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("words", ["row.jsonl", "rows.jsonl --label-column lable"])
def test_no_model_is_loaded_for_a_typo(here, monkeypatch, command, words):
    def loaded(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("sonde.data.load", loaded)
    line = run_words(*command.split(), "sonde:stdlib", *words.split(), "-o", "out.json").error()
    assert "Did you mean" in line
    assert not list(here.glob("out*"))


def test_other_is_looked_for_first_too(here, monkeypatch):
    monkeypatch.setattr("sonde.data.load", None)
    line = run_words("scan", "sonde:stdlib", "rows.jsonl", "--versus", "row.jsonl").error()
    assert "Did you mean rows.jsonl" in line


def test_in_python_too(here, monkeypatch):
    import sonde

    for module in ("sonde.run.reading.read", "sonde.report.scan"):
        monkeypatch.setattr(sys.modules[module], "load", None)
    for call in (sonde.read, sonde.scan):
        with pytest.raises(InputError, match="no column 'txt'"):
            call("sonde:stdlib", "rows.jsonl", text_column="txt")
