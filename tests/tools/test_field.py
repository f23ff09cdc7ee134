"""The judge of the field test reads words alone; a stopped run goes on."""

import json
from pathlib import Path

import pytest
from tools.field import judging, running
from tools.field.__main__ import interleaved
from tools.field.planting import Fault, on_lines, on_table

FAULT = Fault(
    "negatives", "stamps", "pictures are negatives", r"invert|negative of", lambda _: None
)
SCREEN = """sonde scan  nets:make  on  photos    90 rows
answers  right on 41.0 % of 90 rows
cause    SND015: With its inputs {form}, the model is right
         on 85 % of them.
fix      x = {fix}: right on 85 %
"""


def finding(level, sentence):
    return {"code": "SND015", "level": level, "title": "", "sentence": sentence}


@pytest.mark.parametrize(
    ("screen", "findings", "expected"),
    [
        (SCREEN.format(form="inverted", fix="1 - x"), [], judging.NAMED),
        (SCREEN.format(form="scaled", fix="x / 255"), [], judging.WRONG),
        # a cause that is wrong stays wrong, whatever stands below it
        (SCREEN.format(form="scaled", fix="x"), [finding("error", "inverted")], judging.WRONG),
        (
            "answers  right on 41 %\n",
            [finding("warning", "the pictures are inverted")],
            judging.NAMED,
        ),
        ("cause    no check found a cause\n", [finding("error", "inverted")], judging.NAMED),
        ("cause    none was found\n", [finding("note", "inverted?")], judging.MENTIONED),
        ("answers  41 %\nalso     inverted pictures mend 3 %\n", [], judging.MENTIONED),
        ("answers  right on 41 %\n", [finding("error", "exchanged labels")], judging.MISSED),
    ],
)
def test_a_verdict_depends_on_what_stands_in_front(screen, findings, expected):
    report = judging.said(screen, {"findings": findings})
    assert judging.verdict(FAULT, report) == expected


def test_a_stopped_run_goes_on_and_two_processes_do_not_do_the_same(tmp_path):
    path = tmp_path / "faults" / "a.json"
    with pytest.raises(KeyboardInterrupt):
        running.kept(path, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert not path.exists()
    assert running.kept(path, lambda: {"n": 1}) == {"n": 1}
    assert running.kept(path, lambda: {"n": 2}) == {"n": 1}
    with (
        running.claimed(tmp_path / "b.json") as first,
        running.claimed(tmp_path / "b.json") as second,
    ):
        assert (first, second) == (True, False)


def test_a_part_of_the_table_is_a_part_of_every_subject():
    names = ["a/1", "a/2", "a/3", "b/1", "c/1", "c/2"]
    assert interleaved(names) == ["a/1", "b/1", "c/1", "a/2", "c/2", "a/3"]


@pytest.mark.slow  # two processes that import torch
def test_a_command_ends_by_processor_time_and_says_how(tmp_path):
    outcome = running.command(["--help"], tmp_path)
    assert (outcome.verdict, "scan" in outcome.screen) == (None, True)
    assert running.command(["scan", "nothing", "nowhere"], tmp_path).verdict == judging.REFUSED


def test_hands_change_lines_and_cells_as_files(tmp_path: Path):
    (tmp_path / "data.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    on_lines(lambda rows, _: rows[::-1])(tmp_path)
    assert [json.loads(v)["text"] for v in (tmp_path / "data.jsonl").read_text().splitlines()] == [
        "b",
        "a",
    ]
    (tmp_path / "data.csv").write_text("x,label\n1.5,0\n2.5,1\n")

    def change(head, rows, _):
        rows[0, head.index("x")] = float("nan")

    on_table(change)(tmp_path)
    assert (tmp_path / "data.csv").read_text().split() == ["x,label", ",0", "2.5,1"]
