import json

import pytest

from tools import overview_table

SHIFTS = ("mlp near", "mlp far", "cnn near", "cnn far", "mean")


@pytest.fixture
def file(tmp_path):
    figures = {key: [0.1, 0.2] for key in overview_table.CLAIMS}
    for name, mean in (("worse", 0.5), ("better", 0.75), ("least p of worse + better", 0.8)):
        figures |= {f"{name} | {shift}": [mean - 0.1, mean + 0.1] for shift in SHIFTS}
    figures |= {"better | fit ms": [1000.0, 3000.0], "patches | cnn far": [1.0, 1.0]}
    path = tmp_path / "overview.json"
    path.write_text(json.dumps({"figures": figures, "tiny": False}))
    return path


def test_the_best_stands_first_and_combinations_apart(file, capsys):
    assert overview_table.main([str(file)]) == 0
    one, two, _ = (block.splitlines() for block in capsys.readouterr().out.split("\n\n"))
    assert [line.split(" | ")[0] for line in one[2:]] == ["| better", "| worse", "| patches"]
    assert one[2].split(" | ")[1:7] == [".750 +- .141"] * 5 + ["2,000"]
    assert "1.000 +- .000" in one[4]
    assert two[0].startswith("| least p of")
    assert two[2].startswith("| worse + better | .800 +- .141")


def test_a_tiny_run_is_no_table_for_the_docs(file):
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tiny": True}))
    assert overview_table.main([str(file)]) == 1


def test_usage(capsys):
    assert overview_table.main([]) == 2
    assert "usage" in capsys.readouterr().err
