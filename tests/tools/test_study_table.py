import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from sonde_studies import STUDIES, Claim, Study, study_of
from sonde_studies.study import Verdict
from tools import study_table

VERDICTS = {*get_args(Verdict), "as expected", "not as expected"}

CLAIM = {"text": "It is there.", "figure": "units", "above": 0.0, "mean": 1.0, "low": 0.5}
CLAIM |= {"high": 1.5, "detectable": 0.75}


@pytest.fixture
def folder(tmp_path):
    study = {
        "study": "planted",
        "tiny": False,
        "seeds": [*range(10)],
        "claims": [CLAIM | {"verdict": "holds"}],
        "null": CLAIM | {"text": "Nothing.", "verdict": "not as expected"},
    }
    (tmp_path / "planted.json").write_text(json.dumps(study))
    return tmp_path


def test_a_line_for_each_claim_and_the_null_arm(folder, capsys):
    assert study_table.main([str(folder)]) == 0
    _, _, claim, null = capsys.readouterr().out.splitlines()
    assert claim == "| `planted` | It is there. | 1.000 [0.500, 1.500] units | 0 | 0.750 | holds |"
    assert null.endswith("not as expected |")


def test_files_of_older_versions_are_judged_by_their_numbers(folder, capsys):
    file = folder / "planted.json"
    old = json.loads(file.read_text())
    old["claims"] = [
        CLAIM | {"low": -0.5, "high": -0.1, "verdict": "does not hold"},
        CLAIM | {"low": -0.5, "high": 0.1, "verdict": "does not hold: too small"},
        CLAIM | {"low": -0.5, "verdict": "too few seeds"},
        CLAIM | {"verdict": "not tested"},
    ]
    file.write_text(json.dumps(old))
    assert study_table.main([str(folder)]) == 0
    verdicts = [line.split(" | ")[-1] for line in capsys.readouterr().out.splitlines()[2:-1]]
    said = ["holds the other way", "not at this size", "undecided", "not tested"]
    assert verdicts == [f"{verdict} |" for verdict in said]


def test_finished_seeds_in_the_folder_are_no_study(folder, capsys):
    assert study_table.main([str(folder)]) == 0
    said = capsys.readouterr().out
    (folder / "planted.seeds.json").write_text(json.dumps({"tiny": False, "seeds": {}}))
    assert study_table.main([str(folder)]) == 0
    assert capsys.readouterr().out == said


def test_another_number_of_seeds_is_said(folder, capsys):
    file = folder / "planted.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seeds": [4, 5, 6]}))
    assert study_table.main([str(folder)]) == 0
    *_, claim, null = capsys.readouterr().out.splitlines()
    assert claim.endswith("| holds, 3 seeds |")
    assert null.endswith("| not as expected, 3 seeds |")


def test_the_page_has_the_claims_of_the_code_and_no_others():
    page = Path("docs/studies.md").read_text("utf-8").partition(study_table.HEAD + "\n")[2]
    said: dict[str, list[list[str]]] = {}
    for line in page.partition("\n\n")[0].splitlines():
        word, *cells = line.strip("| ").split(" | ")
        said.setdefault(word.strip("`"), []).append(cells)
    assert said.keys() == STUDIES.keys()
    for word, rows in said.items():
        study = study_of(word)
        claims = [*study.claims, replace(study.null, text=study_table.NULL + study.null.text)]
        assert [(text, f"{float(bar):g}") for text, _, bar, *_ in rows] == [
            (claim.text, f"{claim.above:g}") for claim in claims
        ]
        for (_, figure, _, _, verdict), claim in zip(rows, claims, strict=True):
            assert figure.endswith(f"] {claim.figure}")
            assert verdict.partition(",")[0] in VERDICTS


def test_verdicts_of_the_page_are_those_of_its_numbers():
    for word, lines in study_table.rows_of(Path("docs/studies.md").read_text("utf-8")).items():
        assert study_table.judged(study_of(word), lines) == lines


class Judged(Study):
    """Claims of which one is the premise of another."""

    name = "judged"

    claims = (
        Claim("then", "Then.", "units", premise="there"),
        Claim("there", "There.", "units", above=0.1),
    )
    null = Claim("null", "Nothing.", "units")

    def run(self, seed, tiny, tick):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("interval", "seeds", "then", "there"),
    [
        ("0.400 [0.200, 0.600]", ", 5 seeds", "holds", "holds"),
        ("0.130 [0.090, 0.170]", ", 30 seeds", "not tested", "not at this size"),
        ("0.130 [0.090, 0.170]", "", "not tested", "undecided"),
        ("0.100 [0.060, 0.140]", "", "not tested", "not at this size"),
        ("0.050 [0.020, 0.080]", ", 3 seeds", "not tested", "not at this size"),
        ("-0.050 [-0.080, -0.020]", ", 3 seeds", "not tested", "holds the other way"),
        ("0.105 [0.100, 0.110]", ", 9 seeds", "not tested", "not at this size"),
    ],
)
def test_rows_are_judged_anew(interval, seeds, then, there):
    said = there if seeds == ", 9 seeds" else "holds"  # its rounding hides on which side it lies
    rows = [
        f"| `judged` | Then. | 1.000 [0.500, 1.500] units | 0 | 0.750 | holds{seeds} |",
        f"| `judged` | There. | {interval} units | 0.1 | 0.050 | {said}{seeds} |",
        f"| `judged` | {study_table.NULL}Nothing. | 0.000 [-0.010, 0.010] units | 0 | {{}} "
        f"| as expected{{}}{seeds} |",
    ]
    sharp, blind = (rows[2].format(*x) for x in (("0.012", ", weak"), ("9.000", "")))
    *claims, null = study_table.judged(Judged(), [*rows[:2], sharp])
    assert [row.rpartition(" | ")[2] for row in claims] == [f"{v}{seeds} |" for v in (then, there)]
    assert null.endswith(f"| as expected{seeds} |")
    assert study_table.judged(Judged(), [*rows[:2], blind])[2].endswith(f", weak{seeds} |")


def test_a_tiny_run_is_no_table_for_the_docs(folder):
    file = folder / "planted.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tiny": True}))
    assert study_table.main([str(folder)]) == 1


def test_rows_of_a_page_are_replaced_and_the_others_stay(folder):
    page = folder / "page.md"
    other, old = "| `other` | It was. | 1 |", "| `planted` | It is there. | 9 |"
    page.write_text(f"# Studies\n\n{study_table.HEAD}\n{other}\n{old}\n{old}\n\nWhy.\n")
    assert study_table.main([str(folder), str(page)]) == 0
    study = json.loads((folder / "planted.json").read_text())
    rows = "\n".join([other, *study_table.lines_of(study)])
    assert page.read_text() == f"# Studies\n\n{study_table.HEAD}\n{rows}\n\nWhy.\n"


def test_usage(capsys):
    assert study_table.main([]) == 2
    assert "usage" in capsys.readouterr().err
