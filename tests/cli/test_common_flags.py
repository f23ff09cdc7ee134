"""Flags that all commands share, and what is read, told with -v."""

import json
import logging
import re
from dataclasses import fields
from typing import get_type_hints

import pytest
import torch

import sonde.run.scoring.calibrate
from sonde.cli._usage import _flags
from sonde.cli.commands import COMMANDS
from sonde.cli.options import Reading
from sonde_studies import STUDIES

PRINTED = {"--json", "--quiet", "--verbose", "-v", "--no-color", "--debug"}
READ = {
    "--device", "--dtype", "--batch-size", "--limit", "--max-length", "--text-column", "--seed",
    "--label-column", "--image-column", "--sites", "--reducer", "--trust-remote-code",
    "--threads", "--workers",
}  # fmt: skip
WITHOUT_WORKERS = {word: {"--threads", "--workers"} for word in ("explain", "units")}


def reads(word: str) -> bool:
    return Reading in get_type_hints(COMMANDS[word]).values()


@pytest.mark.parametrize("word", COMMANDS)
def test_every_command_has_the_common_flags(word):
    wanted = PRINTED | (READ - WITHOUT_WORKERS.get(word, set()) if reads(word) else set())
    assert wanted - dict(_flags(COMMANDS[word])).keys() == set()
    assert "printing" in {f.name for f in fields(COMMANDS[word])}


def test_what_reads_a_model_is_known():
    assert {word for word in COMMANDS if reads(word)} == {
        "scan", "read", "fit", "calibrate", "score", "evaluate", "compare", "track", "explain",
        "units", "export",
    }  # fmt: skip


@pytest.mark.slow
def test_what_is_read_is_told_with_v(run, place, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    probe, more = place / "probe.sonde", place / "plain.npz"
    both = place / "rows.npz", place / "other.npz"
    told = {
        f"scan - {more}": "data .*plain.npz: 120 rows of a",
        f"read - {more} -o acts": "data .*plain.npz: 120 rows of a",
        f"fit covariance - {more} -o a.sonde": "data .*plain.npz: 120 rows of a",
        f"fit covariance - {place / 'more.npz'} -o b.sonde": "data .*more.npz: 120 rows of a",
        f"score {probe} - {both[1]}": "probe.sonde: Fitted.mahalanobis",
        f"calibrate {probe} - {both[1]} -o c.sonde": "data .*other.npz: 90 rows of a, b",
        f"evaluate {probe} - {both[0]} {both[1]}": "data .*rows.npz: 240 rows of a, b",
        "merge a.sonde b.sonde -o both.sonde": "b.sonde: Fitted.covariance",
        "drift a.sonde b.sonde --methods hotelling": "b.sonde: Fitted.covariance",
        "fit mahalanobis sonde:digits sonde:digits/test --limit 40 -o d.sonde": (
            "model sonde:digits: ViTForImageClassification, .* parameters, float32 on cpu"
        ),
    }
    for words, line in told.items():
        for flag, is_told in (("-v", True), ("--quiet", False)):
            caplog.clear()
            ran = run(*words.split(), flag)
            assert ran.code == 0, ran.err
            found = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
            assert any(re.search(line, text) for text in found) == is_told, found


def test_without_their_package_the_studies_say_how_to_install_it(run, monkeypatch):
    monkeypatch.setattr("sonde.cli.study.entry_points", lambda group: ())
    said = run("study")
    assert said.code == 2
    assert "pip install packages/sonde-studies" in said.err
    assert "\n" not in said.err.strip()


@pytest.mark.truth("the names that the package exports")
def test_studies_are_listed_as_json(run):
    found = run("study", "--json").json()
    assert [entry["name"] for entry in found] == list(STUDIES)
    assert all(entry["title"] for entry in found)
    assert [line.split()[0] for line in run("study").out.splitlines()] == list(STUDIES)


def test_calibrate_computes_in_the_threads_that_are_asked_for(run, place, tmp_path, monkeypatch):
    seen, scored = [], sonde.run.scoring.calibrate.held_scores

    def watched(*args):
        seen.append(torch.get_num_threads())
        return scored(*args)

    monkeypatch.setattr("sonde.run.scoring.calibrate.held_scores", watched)
    words = [
        "calibrate",
        place / "probe.sonde",
        "-",
        place / "other.npz",
        "-o",
        tmp_path / "c.sonde",
    ]
    before = torch.get_num_threads()
    assert run(*words, "--threads", before + 1).code == 0
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
    assert "--threads: expected at least 1, got 0" in run(*words, "--threads", 0).error()


def test_what_is_written_has_one_name():
    written = {
        f"{word} --{name}"
        for word, command in COMMANDS.items()
        for name, kind in get_type_hints(command, include_extras=True).items()
        for mark in getattr(kind, "__metadata__", ())
        if "-o" in (getattr(mark, "aliases", None) or ())
    }
    assert {name.split()[1] for name in written} == {"--output"}, written
    assert len(written) >= 8


@pytest.mark.slow
def test_an_output_that_is_typed_twice_is_written_twice_or_refused(run, tmp_path):
    words = ("compare", "sonde:digits", "sonde:digits", "sonde:digits/test", "--limit", 32)
    page, other = tmp_path / "a.html", tmp_path / "b.json"
    ran = run(*words, "-o", page, "-o", other)
    assert ran.code == 0, ran.err
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert json.loads(other.read_text("utf-8"))["schema"] == "sonde-compare/1"
    assert f"wrote {page}, {other}" in ran.err
    assert "ends in .html or .json" in run(*words, "-o", page, "-o", tmp_path / "c.txt").error()
    fit = ("fit", "knn(k=2)", "sonde:digits", "sonde:digits/test", "-o", tmp_path / "a.sonde")
    some = ("--limit", 64, "--sites", "logits")
    assert run(*fit, *some).code == 0
    tables = [tmp_path / name for name in ("s.csv", "s.html", "s.parquet")]
    score = ("score", tmp_path / "a.sonde", "sonde:digits", "sonde:digits/test", "--limit", 16)
    ran = run(*score, "--each", *(w for name in tables for w in ("-o", name)))
    assert ran.code == 0, ran.err
    assert all(f"wrote {name}: 16 rows" in ran.err for name in tables)
    drawn = [tmp_path / name for name in ("e.html", "e.svg")]
    ran = run("evaluate", tables[0], tables[2], *(w for name in drawn for w in ("-o", name)))
    assert ran.code == 0, ran.err
    assert all(name.stat().st_size > 1000 for name in drawn)
    assert "expected -o once, got it 2 times" in run(*fit, "-o", tmp_path / "b.sonde").error()


@pytest.mark.slow
def test_a_scan_is_written_as_a_page_and_as_json(run, tmp_path):
    page, other = tmp_path / "a.html", tmp_path / "b.json"
    words = ("scan", "sonde:digits", "sonde:digits/test", "--limit", 64, "--only", "SND011")
    ran = run(*words, "-o", other, "-o", page)
    assert ran.code == 0, ran.err
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert json.loads(other.read_text("utf-8"))["schema"].startswith("sonde-scan/")
