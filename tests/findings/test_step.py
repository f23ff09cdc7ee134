"""The next step of a finding, in the words of the scan that found it."""

import csv
import re
import shlex
from pathlib import Path

import pytest
import torch

import sonde
from models import mlp
from sonde.cli.options import Reading
from sonde.findings.settings import ScanSettings
from sonde.findings.words.step import MORE_DATA, Again, Step

COMMAND = {
    "sites": ("blocks", "head"), "reducer": "mean", "text_column": "my text", "long": "truncate",
    "batch_size": "8", "keep_special": True,
}  # fmt: skip


def test_flags_are_those_that_were_typed():
    assert Reading(**COMMAND).typed() == COMMAND
    assert Reading().typed() == {}


@pytest.mark.truth("by hand")
def test_a_command_keeps_the_reading_and_changes_what_the_step_says():
    again = Again("my net", "a.csv", COMMAND, is_command=True)
    rest = "--reducer mean --text-column 'my text' --long truncate --batch-size 8 --keep-special"
    assert again.text(Step("read", {"sites": "layers.3:out|tokens"})) == (
        f"sonde read 'my net' a.csv --sites 'layers.3:out|tokens' {rest} "
        "-o acts_layers.3_out_tokens"
    )
    assert again.text(Step("scan", {"batch_size": 1, "long": "chunk"}, MORE_DATA)) == (
        "sonde scan 'my net' MORE_DATA --batch-size 1 --long chunk --sites blocks head "
        "--reducer mean --text-column 'my text' --keep-special"
    )


def test_a_store_is_exported_and_not_read_otherwise():
    stored = Again("acts", None, {"reducer": "mean"}, is_command=True, is_stored=True)
    assert stored.text(Step("scan", {"deep": True})) == ""
    assert stored.text(Step("read", {"sites": "x"})) == (
        "sonde export acts --sites x -o rows.parquet --rows"
    )


@pytest.mark.truth("the call itself, evaluated")
def test_a_call_from_python_runs(monkeypatch):
    model, data = mlp(), list(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)))
    data += data[:20]
    report = sonde.scan(model, data, settings=ScanSettings(progress=False), sites="0", seed=3)
    steps = {f["code"]: f["next"] for f in report.findings}
    assert steps["SND041"] == ""  # a file that a command writes; the call has report.findings
    assert steps["SND009"] == "sonde.scan(model, more_data, sites='0', seed=3)"


@pytest.mark.truth("by hand")
def test_objects_are_named_and_what_cannot_be_said_is_left_out():
    again = Again(None, "a.csv", {"processor": object(), "sites": ["a", "b"]})
    text = again.text(Step("scan", {"deep": True}))
    assert text == (
        "sonde.scan(model, 'a.csv', processor=processor, sites=['a', 'b'], "
        "settings=ScanSettings(deep=True))"
    )
    wide = Step("scan", {"dtype": "float32"})
    assert again.text(wide) == ""
    loaded = Again("net", "a.csv").text(wide)
    assert loaded == "sonde.scan(sonde.load('net', dtype='float32'), 'a.csv')"
    assert again.text(None) == ""


@pytest.mark.slow
def test_what_a_command_says_next_runs(tmp_path, monkeypatch):
    from cli_case import run_words

    monkeypatch.chdir(tmp_path)
    lines = [f'{{"body": "x = {i % 30}", "kind": "{i % 2}"}}' for i in range(60)]
    Path("a.jsonl").write_text("\n".join(lines))
    words = ("sonde:stdlib", "a.jsonl", "--text-column", "body", "--sites")
    assert run_words("read", *words, "model.layers.0", "-o", "acts").code == 0
    for source in ((*words, "model.layers.1"), ("acts",)):
        found = run_words("scan", *source, "--only", "SND041", "--json").json()["findings"]
        (step,) = [f["next"] for f in found]
        ran = run_words(*shlex.split(step)[1:])
        assert ran.code == 0, ran.err
        listed = list(csv.DictReader(Path("snd041.csv").read_text("utf-8").splitlines()))
        assert sum(row["code"] == "SND041" for row in listed) == 60
        Path("snd041.csv").unlink()


@pytest.mark.slow
def test_what_a_comparison_says_next_shows_rows_of_other(tmp_path, monkeypatch):
    from cli_case import run_words

    monkeypatch.chdir(tmp_path)
    for name, line in {"a": "x = {0}\\nprint(x)", "b": "Call me {0}, or so."}.items():
        lines = [f'{{"body": "{line.format(i)}", "id": "{name}{i}"}}' for i in range(64)]
        Path(f"{name}.jsonl").write_text("\n".join(lines))
    words = ("a.jsonl", "--text-column", "body", "--sites", "model.layers.0")
    only = ("--only", "SND051", "SND052", "--alpha", "0.05")
    scanned = run_words("scan", "sonde:stdlib", *words, "--versus", "b.jsonl", *only, "--json")
    found = {f["code"]: f["next"] for f in scanned.json()["findings"]}
    assert set(found) == {"SND051", "SND052"}
    for step in set(found.values()):
        assert "sonde:stdlib a.jsonl" in step
        assert "sonde:stdlib b.jsonl" in step
        assert_commands_show(step, "b1")
    for name in ("a", "b"):
        read = ("sonde:stdlib", f"{name}.jsonl", *words[1:], "-o", f"{name}-acts")
        assert run_words("read", *read).code == 0
    scanned = run_words("scan", "a-acts", "--versus", "b-acts", *only, "--json")
    for step in {f["next"] for f in scanned.json()["findings"]}:
        assert_commands_show(step, "b1")


def assert_commands_show(steps: str, name: str) -> None:
    from cli_case import run_words

    page = Path("other.html")
    page.unlink(missing_ok=True)
    for step in steps.split(" && "):
        ran = run_words(*shlex.split(step)[1:])
        assert ran.code == 0, ran.err
    assert f">{name}" in page.read_text()
    assert ">a1" not in page.read_text()


@pytest.mark.slow
@pytest.mark.truth("the call itself, evaluated")
def test_a_comparison_from_python_says_a_call_that_scores_other():
    model, draw = mlp(), torch.Generator().manual_seed(0)
    seen = {"sonde": sonde, "model": model}
    seen |= {"data": list(torch.randn(200, 8, generator=draw))}
    seen |= {"other": [row + 6 for row in torch.randn(200, 8, generator=draw)]}
    settings = ScanSettings(progress=False, only=("SND051",))
    report = sonde.scan(model, seen["data"], seen["other"], settings=settings, sites="0")
    (step,) = [f["next"] for f in report.findings]
    table = eval(step, seen)
    assert set(table["site"].to_pylist()) == {"0:out"}
    assert table.num_rows == 200
    assert min(table["p"].to_pylist()) < 0.05


@pytest.mark.slow
@pytest.mark.truth("the share of right answers when the command that the finding prints is run")
def test_the_command_for_pictures_in_another_scale_mends_them(tmp_path, monkeypatch):
    from cli_case import run_words

    monkeypatch.chdir(tmp_path)
    words = ("sonde:digits", "sonde:digits/test", "--only", "SND015", "--json")
    bad = run_words("scan", *words, "--image-mean", "0.2", "--image-std", "1.6").json()
    (found,) = bad["findings"]
    assert bad["answers"]["value"] < 0.6
    mended = run_words(*shlex.split(found["next"])[1:], "--only", "SND015", "--json").json()
    assert mended["answers"]["value"] > 0.95
    assert mended["findings"] == []
    said = re.search(r"correct on (\d+) % instead of (\d+) %", found["fix"])
    assert said is not None
    for told, report in zip(said.groups(), (mended, bad), strict=True):
        assert int(told) == pytest.approx(100 * report["answers"]["value"], abs=8)  # 128 rows


def test_a_class_may_be_called_other_and_copies_are_listed_against_the_second_data():
    again = Again("net", "a.csv", is_command=True, other="b.csv")
    assert again.text(Step("explain", {"class": "OTHER"})).split()[4:6] == ["--class", "OTHER"]
    listed = again.text(Step("scan", {"versus": True, "rows": "copies.csv"}))
    assert listed == "sonde scan net a.csv --versus b.csv --rows copies.csv"
