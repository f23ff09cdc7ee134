"""The judge of the field test reads words alone; a stopped run goes on."""

import json
from pathlib import Path

import pytest
from tools.field import jobs, judging, running, table
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
    assert running.kept(path, lambda: {"n": 1}) == {"commit": running.commit(), "n": 1}
    assert running.kept(path, lambda: {"n": 2})["n"] == 1
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


@pytest.mark.parametrize("folder", ["", "model"])  # of a factory, and of transformers
def test_bytes_of_the_old_weights_are_counted_where_a_subject_has_them(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "weights.safetensors").write_bytes(bytes(70))
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "model.safetensors").write_bytes(bytes(30))
    assert jobs.weight_bytes(jobs.old_weights(tmp_path)) == 70
    with pytest.raises(FileNotFoundError, match=r"holds no \*.safetensors"):
        jobs.weight_bytes(Path(__file__).parent)


PAGE = """# Title
Words.
<!-- printed by make field -->
## Jobs on healthy models

| subject | scan | read | score | compare | compress | scan, s | plain forward, s | loud |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| wines | true | true | true | crash | wrong | 7.8 | 0.0 | none |

## Planted faults

| fault | what a correct report says | healthy | planted | result | stated cause |
| --- | --- | --- | --- | --- | --- |
| stamps/negatives | pictures are negatives | 85.2% | 81.2% | missed |  |
| wines/logarithm | proline is given as its logarithm | 98.9% | 77.8% | named | SND015: a |
<!-- end of what make field prints -->
Below.
"""


def test_a_page_is_renewed_where_there_are_results_and_says_at_which_commit(monkeypatch):
    monkeypatch.setattr(table, "models", lambda: "")
    said = {
        "healthy": 0.852,
        "plain": 0.812,
        "verdict": "named",
        "cause": "SND015: b",
        "commit": "c",
    }
    made = {"wines.compare": {"verdict": "ran", "commit": "d"}}
    page = table.page(PAGE, made, {"stamps/negatives": said})
    assert "| wines | true | true | true | ran | wrong | 7.8 | 0.0 | none |" in page
    assert "| 85.2% | 81.2% | named | SND015: b |" in page
    assert "| 98.9% | 77.8% | named | SND015: a |" in page
    assert "2 of 60 planted faults tried: 2 named." in page
    assert "- at d: wines.compare\n- at c: stamps/negatives" in page
    assert page.startswith("# Title\nWords.\n")
    assert page.endswith("-->\nBelow.\n")
    assert table.page(page, made, {"stamps/negatives": said}) == page
