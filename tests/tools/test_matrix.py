"""The matrix of jobs and architectures: right cells are right, and a wrong one is called wrong."""

import json

import pytest
import torch
from tools.matrix.__main__ import main, tried
from tools.matrix.architectures import ARCHITECTURES
from tools.matrix.cases import Case

pytestmark = pytest.mark.slow


def test_two_architectures(tmp_path, capsys):
    path = tmp_path / "cells.jsonl"
    jobs = ["load", "read", "fit", "edit", "insert", "cache"]
    arguments = ["--json", str(path), "--only", "gpt2", "torch mlp", "--jobs", *jobs]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "11 cells: 11 right, 0 refused, 0 wrong; 2 of 2 architectures" in printed
    lines = path.read_text().splitlines()
    assert [json.loads(line)["job"] for line in lines] == 2 * jobs
    assert main(arguments) == 0
    assert path.read_text().splitlines() == lines


@pytest.mark.parametrize("job", ["load", "read", "fit", "edit", "train"])
def test_a_model_with_other_weights_is_called_wrong(job, tmp_path):
    case = Case(ARCHITECTURES["torch mlp"], tmp_path)
    assert tried(case, job).verdict == "right"
    with torch.no_grad():
        for weight in case.plain.parameters():
            weight[0] *= 1.1
    cell = tried(case, job)
    assert cell.verdict == "wrong", cell
    assert tried(case, "train", seconds=1e-3).said.startswith("TooLong")
