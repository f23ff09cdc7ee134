"""The table of false alarms: a small one that can fail, and that it does."""

import pytest
import torch
from tools.figures.__main__ import main
from tools.figures.drift import ANY, SHIFTS, Line, alarms, apart, pairs, text


@pytest.mark.slow
@pytest.mark.truth("the level itself, by exact binomial intervals of 99.8 %")
def test_no_shift_alarms_too_often_on_rows_of_a_real_model():
    lines = alarms(25, ("other100", "same"))
    methods = {line.method for line in lines if line.way == "other rows"}
    assert len(methods) == len(SHIFTS) + 1
    assert ANY in methods
    assert all(len(line.p) == 25 for line in lines)
    for line in lines:
        assert all(line.is_right(level) for level in (0.05, 0.2)), (line.method, line.way, line.p)


def test_a_method_that_alarms_too_often_is_told(capsys, monkeypatch):
    wrong = Line("other rows", (100, 100), "bad", [0.04] * 20 + [0.5] * 80)
    right = Line("other rows", (100, 100), "good", [0.04] * 5 + [0.5] * 95)
    assert not wrong.is_right(0.05)
    assert right.is_right(0.05)
    assert "20.0% (12.7%-29.2%)" in text([wrong])
    monkeypatch.setattr("tools.figures.drift.alarms", lambda *_: [wrong, right])
    with pytest.raises(SystemExit, match="1"):
        main(["drift", "--check"])
    assert main(["drift"]) == 0
    assert "too many alarms: bad, other rows" in capsys.readouterr().out


def test_sides_are_other_rows_or_the_same_ones():
    rows = torch.arange(40.0)[:, None].repeat(1, 2)
    first, second = apart(rows, (15, 20), 3)
    drawn = [{float(v) for b in s for v in b.rows["x"][:, 0]} for s in (first, second)]
    assert [len(side) for side in drawn] == [15, 20]
    assert not drawn[0] & drawn[1]
    one, other = pairs(rows, rows + 100, 12, 3)
    both = [torch.cat([b.rows["x"][:, 0] for b in s]) for s in (one, other)]
    assert set((both[0] - both[1]).abs().tolist()) == {100.0}
    assert 0 < int((both[0] < both[1]).sum()) < 12
