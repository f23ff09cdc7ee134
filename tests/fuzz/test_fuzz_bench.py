"""A few random models against plain hooks; and three faults put into sonde, which must be found."""

import sys

import pytest
import torch
from tools.fuzz.__main__ import main, tried
from tools.fuzz.comparing import DIFFERENT, EQUAL, TRACEBACK, WARNED
from tools.fuzz.drawing import draw
from tools.fuzz.table import reasons

from sonde.tap.model.axes import Axes
from sonde.tap.rows.frame import POOLED, Frame
from sonde.tap.rows.reduce import Reduction
from sonde.tap.rows.row_memory import RowMemory
from sonde.tap.streams import choose


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lambda *numbers: [o for k in numbers for o in tried(0, k, tmp_path)]
    torch.set_num_threads(threads)


def no_copy(monkeypatch):
    """Keep a tensor without positions itself, which the model may change or write over."""
    monkeypatch.setattr(RowMemory, "keep", lambda _self, rows: rows)
    monkeypatch.setattr(
        Reduction, "_vector", lambda self, x, _frame: (self.axes.last_dim(x), POOLED)
    )


def other_axis(monkeypatch):
    """Take the axis before the features for them."""
    found = choose.find_axes

    def swapped(*arguments):
        words = list(found(*arguments).words)
        at = words.index("dim")
        if at > 1:
            words[at - 1], words[at] = words[at], words[at - 1]
        return Axes(tuple(words))

    monkeypatch.setattr(choose, "find_axes", swapped)


def no_mask(monkeypatch):
    """Count padding among the tokens."""
    monkeypatch.setattr(Frame, "is_whole", lambda *_: True)


HEALTHY, FAULTS = (2, 4, 18), ((18, no_copy), (4, other_axis), (2, no_mask))


@pytest.mark.slow
@pytest.mark.truth("hooks that clone, one example at a time, and numpy in float64")
def test_random_models_are_read_fitted_and_scored_as_they_are(bench):
    outcomes = bench(*HEALTHY)
    assert [o for o in outcomes if o.verdict in (DIFFERENT, TRACEBACK)] == []
    assert {o.number for o in outcomes if o.verdict == EQUAL} == set(HEALTHY)
    commands = {o.command.partition(",")[0] for o in outcomes if o.verdict == EQUAL}
    assert commands >= {"read", "read auto", "fit and score", "score a store"}


@pytest.mark.slow
@pytest.mark.truth("hooks that clone, one example at a time")
def test_what_sonde_says_of_another_order_of_rows_is_heard(bench):
    outcomes = bench(368)
    commands = {o.command for o in outcomes if o.verdict == WARNED}
    assert commands >= {"read auto", "read auto, stored", "fit and score, msp"}
    assert [o for o in outcomes if o.verdict in (DIFFERENT, TRACEBACK)] == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "fault"), FAULTS)
@pytest.mark.truth("the same bench on a sonde without the fault")
def test_a_fault_in_sonde_is_found(bench, monkeypatch, number, fault):
    fault(monkeypatch)
    outcomes = bench(number)
    assert any(o.verdict == DIFFERENT for o in outcomes)
    assert "SILENT DIFFERENCE" in reasons(outcomes)


def test_a_model_is_the_same_each_time():
    for k in range(20):
        assert draw(1, k) == draw(1, k)
    assert len({draw(1, k).source for k in range(20)}) == 20


@pytest.mark.slow
def test_one_model_again_prints_its_source(capsys):
    code = main(["--seed", "0", "--only", "4"])
    said = capsys.readouterr().out
    assert code == 0
    assert "class Net(nn.Module)" in said
    assert "4 read auto" in said
