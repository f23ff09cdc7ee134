"""The matrix of jobs and architectures: right cells are right, and a wrong one is called wrong."""

import json

import pytest
import torch
from tools.matrix.__main__ import main, tried, tried_all
from tools.matrix.architectures import ARCHITECTURES
from tools.matrix.cases import Case
from tools.matrix.jobs import ABOUT, JOBS
from tools.matrix.parallel import ABOUT_PARALLEL, PARALLEL, SPLIT, parallel_cells
from tools.matrix.table import PAGE, STORED, page, read_stored

CELLS, VERSIONS = read_stored(STORED.read_text("utf-8"))


def test_the_page_is_that_of_the_stored_cells():
    about = ABOUT | {PARALLEL: ABOUT_PARALLEL}
    assert PAGE.read_text("utf-8") == page(CELLS, VERSIONS, about)
    every = [(name, job) for name in ARCHITECTURES for job in (*JOBS, PARALLEL)]
    asked = [(name, job) for name, job in every if job != PARALLEL or name in SPLIT]
    assert [(c.architecture, c.job) for c in CELLS] == asked
    assert len(ARCHITECTURES) >= 63
    assert not [c for c in CELLS if c.verdict == "wrong"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_verdicts_are_those_of_the_page(name):
    expected = {c.job: c.verdict for c in CELLS if c.architecture == name}
    cells = list(tried_all(ARCHITECTURES[name], list(JOBS)))
    differ = [c for c in cells if c.verdict != expected[c.job]]
    assert not differ


@pytest.mark.slow
def test_two_split_architectures_have_the_verdicts_of_the_page():
    names = ["gpt_neox", "llama"]
    expected = {c.architecture: c.verdict for c in CELLS if c.job == PARALLEL}
    cells = parallel_cells(names)
    assert {c.architecture: c.verdict for c in cells} == {name: expected[name] for name in names}


@pytest.mark.slow
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


# An alarm in a constructor of torch's leaves its destructor no attribute.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
@pytest.mark.parametrize("job", ["load", "read", "fit", "edit", "train"])
def test_a_model_with_other_weights_is_called_wrong(job, tmp_path):
    case = Case(ARCHITECTURES["torch mlp"], tmp_path)
    assert tried(case, job).verdict == "right"
    with torch.no_grad():
        for weight in case.plain.parameters():
            weight[0] *= 1.1
    cell = tried(case, job)
    assert cell.verdict == "wrong"
    assert cell.said
    assert tried(case, "train", seconds=1e-3).said.startswith("TooLong")
