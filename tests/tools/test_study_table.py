import json

import pytest

from tools import study_table

CLAIM = {"text": "It is there.", "figure": "units", "above": 0.0, "mean": 1.0, "low": 0.5}
CLAIM |= {"high": 1.5, "detectable": 0.75}


@pytest.fixture
def folder(tmp_path):
    study = {
        "study": "planted",
        "tiny": False,
        "claims": [CLAIM | {"verdict": "holds"}],
        "null": CLAIM | {"text": "Nothing.", "as_expected": False},
    }
    (tmp_path / "planted.json").write_text(json.dumps(study))
    return tmp_path


def test_a_line_for_each_claim_and_the_null_arm(folder, capsys):
    assert study_table.main([str(folder)]) == 0
    _, _, claim, null = capsys.readouterr().out.splitlines()
    assert claim == "| `planted` | It is there. | 1.000 [0.500, 1.500] units | 0 | 0.750 | holds |"
    assert null.endswith("not as expected |")


def test_a_tiny_run_is_no_table_for_the_docs(folder):
    file = folder / "planted.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tiny": True}))
    assert study_table.main([str(folder)]) == 1


def test_usage(capsys):
    assert study_table.main([]) == 2
    assert "usage" in capsys.readouterr().err
