import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from sonde_studies import STUDIES, study_of
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
        assert (", weak" in rows[-1][-1]) == _is_weak(
            rows, {c.premise for c in study.claims}, study
        )


def _is_weak(rows, premises, study):
    """Return whether the null arm sees no effect as small as the largest of a claim."""
    *claims, null = rows
    effects = [
        abs(float(figure.split()[0]) - float(bar))
        for (_, figure, bar, *_), claim in zip(claims, study.claims, strict=True)
        if claim.key not in premises
    ]
    return float(null[3]) > max(effects)


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
