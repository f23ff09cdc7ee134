"""What users get wrong: exit code 2, one line that names it, and nothing written."""

import json
import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sonde.cli.generate import prompts_of
from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.files.state_file import read_header
from sonde.run.explaining.choosing import Choice
from sonde.run.reading.read import read


@pytest.fixture
def out(tmp_path, place, monkeypatch):
    """The output of each case: it must not be there afterwards, nor a run directory."""
    monkeypatch.chdir(place)
    yield tmp_path / "out"
    assert list(tmp_path.iterdir()) == []


FIT = "fit mahalanobis"
CASES = {
    "no file": ("fit knn - nothing.npz", ["no such file", "nothing.npz"]),
    "no data": ("scan sonde:digits nothing.jsonl", ["no such file", "nothing.jsonl"]),
    "no model": ("fit knn no/model rows.npz", ["no directory no/model", "Pass the path"]),
    "no factory": ("fit knn nowhere.nets:make rows.npz", ["nowhere"]),
    "no array": ("fit knn - rows.npz --sites c", ["'c'", "rows.npz"]),
    "near site": ("fit knn sonde:digits sonde:digits --sites vit.layer.0", ["vit.layers.0"]),
    "empty": ("fit knn - none.npz", ["empty"]),
    "empty scan": ("scan - none.npz", ["empty"]),
    "header alone": (
        "fit knn sonde:digits head.csv --image-column image",
        ["head.csv has no rows"],
    ),
    "one row": (f"{FIT} - one.npz", ["Mahalanobis: no row to fit on", "'held'"]),
    "one row measure": ("fit covariance - one.npz", ["expected at least 2 rows, got 1 at a"]),
    "one row entropy": ("fit unit_entropy - one.npz", ["expected at least 2 rows, got 1 at a"]),
    "one row scan": ("scan - one.npz", ["at least two examples", "got one"]),
    "one class": ("fit class_separability - one_class.npz", ["at least two classes", "got 1"]),
    "one class detector": (
        "fit relative_mahalanobis - one_class.npz",
        ["at least two classes, got 1"],
    ),
    "no label": ("fit relative_mahalanobis - plain.npz", ["expected labels", "Pass labels"]),
    "no gradient": ("fit nac - rows.npz", ["no gradient", "Pass a model"]),
    "no logits": ("fit energy - rows.npz", ["'logits'"]),
    "nan": (f"{FIT} - nan.npz", ["no row to fit on", "finite"]),
    "nan later": ("fit covariance - half_nan.npz", ["no row to fit on at b", "finite"]),
    "table without a model": ("scan - rows.csv", [".npz", "rows.csv", "name a model"]),
    "pickle": ("fit knn - pickle.npy", ["pickle", "not loaded"]),
    "wrong kind": ("fit knn sonde:stdlib rows.npz", ["rows.npz"]),
    "wrong column": ("fit knn sonde:digits rows.csv --image-column foto", ["foto"]),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_named(run, place, out, name):
    (place / "rows.csv").write_text("image,label\na.png,1\n")
    (place / "head.csv").write_text("image,label\n")
    words, said = CASES[name]
    suffix = ".json" if words.startswith("scan") else ".sonde"
    line = run(*words.split(), "-o", out.with_suffix(suffix)).error()
    assert all(text in line for text in said), line


@pytest.mark.truth("numpy norm")
def test_what_is_defined_on_one_row_is_told(run, place, tmp_path):
    norm = float(np.linalg.norm(np.load(place / "one.npz")["a"]))
    words = ["fit", "norms", "-", place / "one.npz", "-o", tmp_path / "a.sonde", "--json"]
    assert run(*words).json()["results"][0]["value"] == pytest.approx(norm, rel=0.01)


@pytest.mark.slow
def test_all_nan_is_a_finding_of_a_scan(run, place):
    ran = run("scan", "-", place / "nan.npz", "--json")
    assert ran.code == 0, ran.err
    findings = {f["code"]: f for f in ran.json()["findings"]}
    assert findings["SND001"]["level"] == "error"
    assert ran.json()["sites"] == []
    assert not [c for c in ran.json()["checks"] if c["state"] == "failed"]
    assert findings.keys() == {"SND001"}
    withheld = {c["reason"] for c in ran.json()["checks"] if c["state"] == "withheld"}
    assert withheld == {"no site has a row without NaN or infinity"}
    text = run("scan", "-", place / "nan.npz")
    assert "SND001" in text.out
    assert "60 rows  0 of 1 site with finite rows" in text.out
    assert max(map(len, text.out.splitlines())) <= 80


def test_sites_before_the_nan_are_looked_at(run, place, report):
    found = run("scan", "-", place / "half_nan.npz", "--json").json()
    assert found["sites"]
    assert not any(s["site"].startswith("b") for s in found["sites"])


OUTPUTS = {
    "no folder": ("missing/x{}", "there is no folder"),
    "a folder": ("folder{}", "it is a folder"),
}


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize(
    ("words", "suffix"),
    [
        ("fit knn - rows.npz", ".sonde"),
        ("scan - rows.npz", ".html"),
        ("score probe.sonde - rows.npz", ".csv"),
        ("merge probe.sonde probe.sonde", ".sonde"),
    ],
)
def test_outputs_that_cannot_be_written(run, place, tmp_path, monkeypatch, name, words, suffix):
    monkeypatch.chdir(place)
    (tmp_path / f"folder{suffix}").mkdir()
    path, said = OUTPUTS[name]
    line = run(*words.split(), "-o", tmp_path / path.format(suffix)).error()
    assert said in line
    assert [p.name for p in tmp_path.iterdir()] == [f"folder{suffix}"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a file system that takes no files")
@pytest.mark.parametrize(
    "words", ["fit knn - rows.npz -o /proc/x.sonde", "scan - rows.npz -o /proc/x.html"]
)
def test_a_file_system_that_takes_no_files_is_known_before_the_work(run, place, monkeypatch, words):
    monkeypatch.chdir(place)
    monkeypatch.setattr("sonde.run.reading.read.read", None)
    line = run(*words.split()).error()
    assert "cannot write /proc/x" in line
    assert "/proc does not accept files" in line or "no permission" in line


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(run, place, tmp_path):
    tmp_path.chmod(0o500)
    line = run("fit", "knn", "-", place / "rows.npz", "-o", tmp_path / "a.sonde").error()
    assert "no permission" in line


@contextmanager
def _without_rights():
    """Be a user who may not read files of mode 0: root may."""
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(mine)


def test_a_file_that_may_not_be_read_is_one_line(run):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        locked = Path(folder) / "rows.csv"
        locked.write_text("a,b\n1,2\n")
        run("evaluate", locked, locked).error()  # imports what is not read without rights
        locked.chmod(0)
        with _without_rights():
            line = run("evaluate", locked, locked).error()
    assert f"{locked}: Permission denied" in line


def test_rows_to_explain_that_are_no_table_are_refused(tmp_path):
    model, inputs = Model(nn.Linear(2, 2)), read(nn.Linear(2, 2), torch.zeros(3, 2)).inputs
    for name, content in (("a.parquet", b"\x00PAR1"), ("b.csv", b""), ("c.jsonl", b"{\xff")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=name):
            Choice(rows=path).of(model, inputs, 1)


@pytest.mark.parametrize("words", ["info {}", "encode {}", "compress sonde:digits {} -o small"])
def test_a_name_that_is_too_long_is_one_line(run, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "a" * 300 + ".jsonl"
    # Since Python 3.14, a path with such a name is told from none only when it is opened.
    reason = ": File name too long" if sys.version_info < (3, 14) else ""
    assert f"{name}{reason}" in run(*words.format(name).split()).error()


@pytest.mark.parametrize("flag", ["--dictionary", "--rows"])
def test_files_of_explain_are_opened_before_the_model(run, flag, tmp_path):
    bad = tmp_path / "damaged.csv"
    bad.write_bytes(b"\x00")
    line = run("explain", "no/model", "sonde:digits/test", flag, bad).error()
    assert "damaged.csv" in line
    assert "no/model" in run("explain", "no/model", "sonde:digits/test").error()


def test_a_file_of_another_kind_is_no_prompt(tmp_path):
    path = tmp_path / "prompts.npz"
    path.write_bytes(b"PK")
    with pytest.raises(InputError, match=r"prompts\.npz"):
        prompts_of(str(path), None)
    assert prompts_of("long." * 1000, None) == ["long." * 1000]


def test_a_full_disk(run, place, tmp_path, monkeypatch):
    import errno

    def full(descriptor, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sonde.files.durable.write", full)
    line = run("fit", "knn", "-", place / "rows.npz", "-o", tmp_path / "a.sonde").error()
    assert "full" in line or "No space" in line
    assert not (tmp_path / "a.sonde").exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "huge header", "empty", "not ours"])
@pytest.mark.parametrize("command", ["score {} - rows.npz", "info {}", "merge {} probe.sonde"])
def test_damaged_states(run, place, tmp_path, monkeypatch, damage, command):
    monkeypatch.chdir(place)
    content = (place / "probe.sonde").read_bytes()
    broken = {
        "truncated": content[: len(content) // 2],
        "flipped": content[:40] + bytes([content[40] ^ 1]) + content[41:],
        "huge header": b"\xff" * 7 + b"\x7f" + content[8:],
        "empty": b"",
        "not ours": b"PK\x03\x04" + bytes(1000),
    }[damage]
    path = tmp_path / "bad.sonde"
    path.write_bytes(broken)
    words = command.format(path).split()
    if words[0] == "merge":
        words += ["-o", str(tmp_path / "m.sonde")]
    line = run(*words).error()
    assert "bad.sonde" in line
    assert [p.name for p in tmp_path.iterdir()] == ["bad.sonde"]


@pytest.mark.slow
def test_states_of_another_version_or_data(run, place, tmp_path):
    assert read_header(place / "probe.sonde")["version"] == 1
    line = run("score", place / "probe.sonde", "-", place / "plain.npz").error()
    assert "fitted at a, b" in line
    assert "called 'b'" in line
    line = run("score", place / "probe.sonde", "-", place / "narrow.npz").error()
    assert "expected dim=5" in line
    line = run("score", place / "probe.sonde", "sonde:digits", "sonde:digits/test").error()
    assert "fitted at a" in line
    line = run("merge", place / "probe.sonde", place / "probe.sonde", "-o",
               tmp_path / "m.sonde").error()  # fmt: skip
    assert "twice" in line or "overlap" in line
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """Sixty lines, one of which is broken."""
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": "x = " + str(rng.integers(0, 10**9))}) for _ in range(60)]
    lines[41] = '{"text": "x'
    (folder / "t.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_a_broken_line_is_numbered_or_skipped(run, texts, tmp_path):
    words = ["fit", "spectrum", "sonde:stdlib", texts / "t.jsonl", "--sites", "model.layers.0",
             "-o", tmp_path / "a.sonde"]  # fmt: skip
    line = run(*words).error()
    assert "42" in line
    assert "--skip-bad" in line
    assert list(tmp_path.iterdir()) == []
    ran = run(*words, "--skip-bad")
    assert ran.code == 0, ran.err
    assert read_header(tmp_path / "a.sonde")["data"]["n_examples"] == 59


def test_an_image_that_cannot_be_read(run, tmp_path):
    from PIL import Image

    images = tmp_path / "images" / "a"
    images.mkdir(parents=True)
    for i in range(3):
        Image.new("L", (8, 8), i * 40).save(images / f"{i}.png")
    content = (images / "1.png").read_bytes()
    (images / "1.png").write_bytes(content[: len(content) // 2])
    line = run("fit", "spectrum", "sonde:digits", tmp_path / "images", "-o",
               tmp_path / "a.sonde").error()  # fmt: skip
    assert "1.png" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images"]


@pytest.mark.parametrize("words", [("fit", "spectrum"), ("score", "none.sonde")])
def test_the_data_are_never_written_over(run, tmp_path, words):
    data = tmp_path / "rows.csv"
    data.write_text("a,b\n1,2\n")
    (tmp_path / "link.csv").hardlink_to(data)
    for output in (data, tmp_path / "link.csv"):
        line = run(*words, "-", data, "-o", output).error()
        assert "this command reads it, so it would be overwritten. Name another file." in line
    assert data.read_text() == "a,b\n1,2\n"


def test_remote_code_is_refused_with_its_flag(run, tmp_path, place):
    folder = tmp_path / "model"
    folder.mkdir()
    config = {
        "model_type": "mine",
        "architectures": ["Mine"],
        "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Mine"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
    (folder / "mine.py").write_text("raise SystemExit('code of the checkpoint ran')")
    line = run("fit", "knn", folder, place / "rows.npz", "-o", tmp_path / "a.sonde").error()
    assert "--trust-remote-code" in line or "trust_remote_code" in line
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_an_extra_that_is_missing_names_its_command(run, place, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    words = ["fit", "knn", "sonde:digits", "some/dataset", "-o", tmp_path / "a.sonde"]
    line = run(*words).error()
    assert "pip install 'sonde-torch[hf]" in line
    assert list(tmp_path.iterdir()) == []


NOT_TEXT = {
    "prompts": ("generate sonde:stdlib {}", "p.txt"),
    "rows": ("scan sonde:digits {}", "p.csv"),
    "lines": ("scan sonde:digits {}", "p.jsonl"),
    "pairs": ("trace sonde:stdlib --pairs {}", "p.jsonl"),
    "facts": ("edit rewrite-fact sonde:stdlib sonde:code --facts {} -o new", "p.jsonl"),
    "card": ("scan sonde:digits sonde:digits/test --card {}", "p.md"),
    "names": ("scan sonde:digits sonde:digits/test --classes {}", "p.txt"),
}


@pytest.mark.parametrize("name", NOT_TEXT)
def test_bytes_that_are_no_text_are_named_in_plain_words(run, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    words, file = NOT_TEXT[name]
    Path(file).write_bytes(b"image,label\xff\n")
    line = run(*words.format(file).split()).error()
    assert file in line
    assert "not UTF-8 text (byte 0xff at position 11)" in line
    assert [path.name for path in tmp_path.iterdir()] == [file]


NO_RIGHT = {
    "table": ("scan sonde:digits {}", "p.parquet"),
    "rows": ("explain sonde:digits sonde:digits/test --rows {}", "p.csv"),
    "pairs": ("trace sonde:stdlib --pairs {}", "p.jsonl"),
    "facts": ("edit rewrite-fact sonde:stdlib sonde:code --facts {} -o new", "p.jsonl"),
    "report": ("verify {}", "p.json"),
    "page": ("verify {}", "p.html"),
    "export": ("info {}", "p.parquet"),
    "tensors": ("info {}", "p.safetensors"),
}


@pytest.mark.parametrize("name", NO_RIGHT)
def test_a_file_without_the_right_to_read_it_is_no_damaged_file(run, name):
    words, file = NO_RIGHT[name]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / file
        path.write_bytes(b"image,label\n" * 9)
        path.chmod(0)
        with _without_rights():
            line = run(*words.format(path).split()).error()
    assert str(path) in line
    assert "ermission denied" in line
    assert "rrno" not in line
    assert "damaged" not in line
