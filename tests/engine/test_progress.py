"""What a bar says of the time that is left."""

import os
import time

import pytest

from sonde.engine import progress
from sonde.engine.progress import Bar, Working


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


@pytest.mark.parametrize(("delay", "shown"), [(0.01, True), (9.0, False)])
def test_work_that_takes_long_is_named_on_a_terminal(delay, shown, monkeypatch):
    ours, theirs = pytest.importorskip("pty").openpty()
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", terminal)
        patch.setenv("TERM", "xterm")
        with Working("result of cka at blocks.3", delay):
            time.sleep(0.3)
        terminal.write("end")
    assert ("result of cka at blocks.3" in os.read(ours, 9999).decode()) is shown
    os.close(ours)


def test_work_is_silent_without_a_terminal(capsys):
    with Working("result of cka at blocks.3", 0.0):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""
