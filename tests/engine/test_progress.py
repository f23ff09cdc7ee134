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
    assert said(monkeypatch, capsys, [35, 3], 200) == ""
    assert said(monkeypatch, capsys, [9, 1, 1], 600) == ""
    text = said(monkeypatch, capsys, [10, 5, 5], 700)
    assert text == "scan: about 25 s more for 700 examples; Ctrl-C keeps what is done.\n"


@pytest.mark.truth("by hand")
def test_what_takes_minutes_is_said_after_the_first_step(monkeypatch, capsys):
    text = said(monkeypatch, capsys, [30, 30], 900)
    assert text == "scan: up to 4 min more for 900 examples; Ctrl-C keeps what is done.\n"


def test_work_that_is_lost_by_an_interrupt_does_not_say_that_it_is_kept(monkeypatch, capsys):
    text = said(monkeypatch, capsys, [30, 30], 900, keeps=False)
    assert text == "scan: up to 4 min more for 900 examples.\n"
