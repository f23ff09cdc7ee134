"""What a bar says of the time that is left."""

import pytest

from sonde.engine import progress
from sonde.engine.progress import Bar


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


def said(monkeypatch, capsys, steps, total, keeps=True):
    """Return what is said when steps of so many seconds do 100 examples each."""
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    with Bar("scan", total, keeps=keeps) as bar:
        for seconds in steps:
            clock.now += seconds
            bar.advance(100)
    return capsys.readouterr().err


@pytest.mark.truth("by hand")
def test_the_first_step_warms_up(monkeypatch, capsys):
    assert said(monkeypatch, capsys, [70, 3], 300) == ""
    assert said(monkeypatch, capsys, [70, 30, 1, 1, 1, 1], 2000) == ""
    text = said(monkeypatch, capsys, [70, 30, 5, 5], 900)
    assert text == "scan: about 25 s more for 900 examples; Ctrl-C keeps what is done.\n"
    assert "about 5 min" in said(monkeypatch, capsys, [70, 30, 30], 1300)


def test_work_that_is_lost_by_an_interrupt_does_not_say_that_it_is_kept(monkeypatch, capsys):
    text = said(monkeypatch, capsys, [30, 30, 30], 1200, keeps=False)
    assert text == "scan: about 4 min more for 1,200 examples.\n"
