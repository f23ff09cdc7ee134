"""Sites that are not read though nobody named others are told, each with its reason."""

import json
from pathlib import Path

import numpy as np
import pytest

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.apart = nn.Linear(6, 4), nn.Linear(4, 4)
        self.unused, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x)
        steps = self.apart(x.reshape(-1, 4))
        return self.last((x + steps.view_as(x)).mean(1))

def make():
    torch.manual_seed(0)
    return Net()
"""
LEFT = {"apart:out": "expected an axis of examples", "unused:out": "did not run"}


@pytest.fixture
def words(tmp_path, monkeypatch) -> list[str]:
    (tmp_path / "net_of_steps.py").write_text(NET)
    x = np.random.default_rng(0).normal(size=(40, 5, 6)).astype("f4")
    np.savez(tmp_path / "x.npz", x=x)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return ["net_of_steps:make", "x.npz"]


def assert_tells(entries) -> None:
    found = {entry["site"]: entry["reason"] for entry in entries}
    assert found.keys() == LEFT.keys()
    assert all(found[site].startswith(reason) for site, reason in LEFT.items())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["fit mahalanobis", "read"])
def test_what_is_not_read_is_said_in_one_line_and_listed_in_json(run, words, command):
    ran = run(*command.split(), *words, "-o", "out")
    assert ran.code == 0, ran.err
    said = [line for line in ran.err.splitlines() if "left out" in line]
    assert len(said) == 1
    assert said[0].startswith("note: left out 2 sites (such as")
    again = run(*command.split(), *words, "-o", "again", "--json")
    assert_tells(again.json()["left_out"])


@pytest.mark.slow
def test_a_scan_says_what_it_did_not_read(run, words):
    ran = run("scan", *words, "-o", "report.html")
    assert ran.code == 0, ran.err
    assert sum("left out" in line for line in ran.out.splitlines()) == 1
    assert "Sites that were left out" in Path("report.html").read_text()
    assert_tells(json.loads(run("scan", *words, "--json").out)["left_out"])
