"""Remarks of a command: those that say the same are one line with their count."""

import warnings

import numpy as np
import pytest

from sonde.cli.console import note, noting, told_once
from sonde.core.errors import SondeWarning


@pytest.mark.truth("by hand: two detectors, of which each has the rows of b that are not finite")
def test_a_remark_about_several_detectors_is_one_line(run, place, tmp_path):
    rows = np.load(place / "rows.npz")
    broken = np.full_like(rows["b"][:60], np.nan)
    np.savez(tmp_path / "half.npz", a=rows["a"][:60], b=broken)
    ran = run("score", place / "probe.sonde", "-", tmp_path / "half.npz")
    lines = [line for line in ran.err.splitlines() if "infinite" in line]
    assert lines == [
        "note: mahalanobis at b, knn at b: 60 of 60 scores are infinite: their rows are not "
        "finite, or too large for their type."
    ]


def test_warnings_that_repeat_are_one_line_and_all_come_before_the_error(run, monkeypatch):
    from sonde.cli.score import Score
    from sonde.core.errors import InputError

    def warned(self):
        for i in (3, 3, 5):
            warnings.warn(f"{i:,} of 7 files are broken.", SondeWarning, stacklevel=1)
        note("note: another.")
        raise InputError("it ends.")

    monkeypatch.setattr(Score, "run", warned)
    words = ("score", "p.sonde", "-", "x.npz")
    ran = run(*words)
    told = "note: 3 of 7 files are broken. (1 more with other numbers: -v)"
    assert ran.err.splitlines() == [told, "note: another.", "error: it ends."]
    assert "note: 5 of 7 files are broken." in run(*words, "-v").err


def test_counts_places_and_other_numbers():
    same = [("1 of 9 lost.", place) for place in "abcd"]
    assert told_once(same) == ["a, b and 2 more: 1 of 9 lost."]
    assert told_once([("a", "")] * 3) == ["a (3 times)"]
    assert told_once([("a", "")]) == ["a"]


def test_outside_of_a_command_a_remark_is_written_at_once(capsys):
    note("note: now")
    assert capsys.readouterr().err == "note: now\n"
    with noting():
        note("note: later")
        note("wrote x")
        assert capsys.readouterr().err == "wrote x\n"
    assert capsys.readouterr().err == "note: later\n"
