import json
from dataclasses import replace
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


def printed(capsys):
    """Return the rows that were printed below the names of the columns."""
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == study_table.HEAD
    return [study_table.Row(*line.split("\t")) for line in lines]


def test_a_line_for_each_claim_and_the_null_arm(folder, capsys):
    assert study_table.main([str(folder)]) == 0
    claim, null = printed(capsys)
    cells = "planted|It is there.|1.000|0.500|1.500|units|0|0.750|holds|10"
    assert claim == study_table.Row(*cells.split("|"))
    assert null.is_null
    assert null.verdict == "not as expected"


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
    said = ["holds the other way", "not at this size", "undecided", "not tested"]
    assert [row.verdict for row in printed(capsys)[:-1]] == said


def test_finished_seeds_in_the_folder_are_no_study(folder, capsys):
    assert study_table.main([str(folder)]) == 0
    said = capsys.readouterr().out
    (folder / "planted.seeds.json").write_text(json.dumps({"tiny": False, "seeds": {}}))
    assert study_table.main([str(folder)]) == 0
    assert capsys.readouterr().out == said


def test_the_table_has_the_claims_of_the_code_and_no_others():
    table = study_table.read()
    assert table.keys() == STUDIES.keys()
    for word, rows in table.items():
        study = study_of(word)
        claims = [*study.claims, replace(study.null, text=study_table.NULL + study.null.text)]
        assert [(row.claim, f"{float(row.bar):g}", row.figure) for row in rows] == [
            (claim.text, f"{claim.above:g}", claim.figure) for claim in claims
        ]
        assert {row.verdict.partition(",")[0] for row in rows} <= VERDICTS


def test_verdicts_of_the_table_are_those_of_its_numbers():
    for word, rows in study_table.read().items():
        assert study_table.judged(study_of(word), rows) == rows


def test_the_drawn_table_tells_a_script_what_to_hide():
    numbers = {"mean": "1", "low": "0", "high": "2", "bar": "0", "seen": "1", "seeds": "10"}
    verdict = "not as expected, weak"
    row = study_table.Row("nac", "A < b.", figure="units", verdict=verdict, **numbers)
    drawn = study_table.page(
        {"nac": [row, row], "rome": [row]}, {"nac": ["detect"]}, {"nac": ["NAC"]}, ["nac"]
    )
    begin = '<tr data-verdict="not as expected" data-family="detect" data-systems="NAC">'
    assert drawn.count(begin) == 2
    assert drawn.count('<a class="reference internal" href="#note-nac">') == 1
    assert drawn.count('<td id="study-nac">') == drawn.count('<td id="study-rome">') == 1
    assert "A &lt; b." in drawn


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
        ("0.400 0.200 0.600", 5, "holds", "holds"),
        ("0.130 0.090 0.170", 30, "not tested", "not at this size"),
        ("0.130 0.090 0.170", 10, "not tested", "undecided"),
        ("0.100 0.060 0.140", 10, "not tested", "not at this size"),
        ("0.050 0.020 0.080", 3, "not tested", "not at this size"),
        ("-0.050 -0.080 -0.020", 3, "not tested", "holds the other way"),
        ("0.105 0.100 0.110", 9, "not tested", "not at this size"),
    ],
)
def test_rows_are_judged_anew(interval, seeds, then, there):
    said = there if seeds == 9 else "holds"  # its rounding hides on which side it lies
    rows = [
        ["Then.", "1.000", "0.500", "1.500", "units", "0", "0.750", "holds"],
        ["There.", *interval.split(), "units", "0.1", "0.050", said],
        [f"{study_table.NULL}Nothing.", "0.000", "-0.010", "0.010", "units", "0", "{}", "{}"],
    ]
    *claims, null = (study_table.Row("judged", *row, str(seeds)) for row in rows)
    sharp = replace(null, seen="0.012", verdict="as expected, weak")
    *found, found_null = study_table.judged(Judged(), [*claims, sharp])
    assert [row.verdict for row in found] == [then, there]
    assert found_null.verdict == "as expected"
    blind = replace(null, seen="9.000", verdict="as expected")
    assert study_table.judged(Judged(), [*claims, blind])[2].verdict == "as expected, weak"


@pytest.mark.parametrize(
    ("low", "high", "allowed"),
    [
        ("-0.008", "-0.000", {"holds the other way"}),  # the sign is not lost by rounding
        ("-0.008", "0.000", {"not at this size"}),
        ("0.000", "0.000", {"holds", "not at this size"}),
    ],
)
def test_a_number_that_is_rounded_to_0_keeps_its_side(low, high, allowed):
    row = study_table.Row("a", "b", low, low, high, "units", "0", "0.006", "", "30")
    assert row.allowed == allowed


def test_a_tiny_run_is_no_table_for_the_docs(folder):
    file = folder / "planted.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tiny": True}))
    assert study_table.main([str(folder)]) == 1


@pytest.mark.parametrize(("seconds", "stated", "code"), [(290, 20, 0), (450, 20, 1), (450, 40, 0)])
def test_a_study_that_takes_its_time_has_to_say_so(folder, capsys, seconds, stated, code):
    file = folder / "planted.json"
    costs = {"seconds": seconds, "seconds_stated": stated}
    file.write_text(json.dumps(json.loads(file.read_text()) | costs))
    assert study_table.main([str(folder)]) == code
    said = "error: study planted: expected at most 20 s of processor time a seed, as it states, got"
    assert capsys.readouterr().err.startswith(said + " 45") == bool(code)


def test_rows_of_a_table_are_replaced_and_the_others_stay(folder):
    table = folder / "table.tsv"
    study = json.loads((folder / "planted.json").read_text())
    other = replace(study_table.rows_of(study)[0], study="other")
    old = replace(other, study="planted", mean="9.000")
    table.write_text(study_table.as_text([other, old, old]))
    assert study_table.main([str(folder), str(table)]) == 0
    assert study_table.read(table) == {"other": [other], "planted": study_table.rows_of(study)}


def test_usage(capsys):
    assert study_table.main([]) == 2
    assert "usage" in capsys.readouterr().err
