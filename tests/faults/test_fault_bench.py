"""The real commands under every kind of fault, small; and a broken sonde, which must be caught."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tools.faults.__main__ import shares
from tools.faults.commands import Ended
from tools.faults.counting import Count
from tools.faults.damaging import NO_CHECKSUM
from tools.faults.trial import Trial, table, unclear

ROOT = Path(__file__).parents[2]
LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="watches through /proc")


def bench(*words: str) -> tuple[int, dict[tuple[str, str], list[int]], str]:
    """Return the exit code, the figures of each line of the table, and what was said."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.faults", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines = [re.split(r" *\| *", line.strip("| ")) for line in done.stdout.splitlines()]
    figures = {(line[0], line[1]): [int(n) for n in line[2:]] for line in lines[2:]}
    return done.returncode, figures, done.stderr[-20000:]


@pytest.mark.slow
@LINUX
@pytest.mark.truth("the undisturbed run")
def test_every_killed_run_ends_in_the_same_bytes():
    """A worker that is killed: tests/run/test_crew.py."""
    code, figures, said = bench("--quick", "--kills", "6", "--only", "kill", "--only", "data")
    assert code == 0, said
    killed = {where: line for (fault, where), line in figures.items() if fault == "SIGKILL"}
    assert killed == {"fit": [3, 3, 3, 0, 0, 0], "read": [2, 2, 2, 0, 0, 0],
                      "merge": [1, 1, 1, 0, 0, 0]}  # fmt: skip
    assert re.search(r"[1-9]\d* units, ", said), "no kill found committed work"
    assert figures["**all**", ""] == [8, 8, 8, 2, 0, 0]


@pytest.mark.slow
@LINUX
@pytest.mark.truth("the undisturbed run")
@pytest.mark.parametrize(
    ("kinds", "least", "unchecked"),
    [(("damage",), 22, 3), (("disk", "writers", "stores"), 17, 0)],
    ids=["files", "folders"],
)
def test_every_fault_ends_in_the_same_bytes_or_a_clear_error(kinds, least, unchecked):
    code, figures, said = bench("--small", *(w for kind in kinds for w in ("--only", kind)))
    assert code == 0, said
    tried, survived, _, _, lost, twice = figures["**all**", ""]
    taken = [line[0] - line[1] for (_, where), line in figures.items() if NO_CHECKSUM in where]
    assert len(taken) == unchecked
    assert tried == survived + sum(taken) >= least
    assert lost == twice == 0


@pytest.mark.slow
@LINUX
@pytest.mark.truth("the answers that were told before the fault")
def test_a_server_survives_kills_and_damage_of_its_changes():
    code, figures, said = bench("--small", "--only", "serve")
    assert code == 0, said
    assert figures["SIGKILL", "serve"] == [2, 2, 2, 0, 0, 0]
    assert figures["a flipped byte", "serve: changes"] == [1, 1, 0, 1, 0, 0]
    assert figures["a truncated file", "serve: changes"] == [1, 1, 0, 1, 0, 0]


@pytest.mark.slow
@LINUX
@pytest.mark.truth("commits that are broken on purpose")
def test_a_sonde_that_counts_twice_or_forgets_is_caught():
    broken = str(Path(__file__).with_name("broken.py"))
    code, figures, said = bench("--quick", "--only", "data", "--program", broken)
    assert code == 1
    fits, rows = (figures["data changed between runs", name] for name in ("fit", "read"))
    assert fits[0] == rows[0] >= 1
    assert fits[1] == rows[1] == 0, said
    assert fits[-1] > 0, "rows that count twice were not counted"
    assert rows[-2] > 0, "rows that are lost were not counted"
    assert fits[-2] == rows[-1] == 0


@pytest.mark.parametrize(
    ("code", "err", "fine"),
    [
        (0, "wrote a", True),
        (2, "note: b\nerror: no such file", True),
        (1, "a: 1 fault.", True),
        (2, "error: a\nerror: b", False),
        (2, "error: a\nand more", False),
        (1, "Traceback (most recent call last):\nOSError: full", False),
        (-11, "", False),
    ],
)
def test_what_is_a_clear_end(code, err, fine):
    assert (unclear([Ended(code, "", err)]) == "") == fine


def test_only_a_format_without_a_checksum_excuses_damage_that_passes():
    def trial(**facts: Any) -> Trial:
        return Trial("a", "b", Count(), **{"same": False, "clear": False, **facts})

    assert trial().is_fault_of_ours
    assert trial(unchecked=True, wrong="Traceback").is_fault_of_ours
    assert not trial(unchecked=True).is_fault_of_ours
    assert not trial(unchecked=True).survived
    assert not trial(clear=True).is_fault_of_ours


def test_the_table_adds_up():
    good = Trial("a", "fit", Count(), same=True, clear=False)
    bad = Trial("a", "fit", Count(lost=3, twice=2), same=False, clear=True)
    assert good.survived
    assert not bad.survived
    cells = [line.split("|") for line in table([good, bad]).splitlines()]
    assert [c.strip() for c in cells[2][1:-1]] == ["a", "fit", "2", "1", "1", "1", "3", "2"]
    assert cells[-1][3:] == cells[2][3:]


def test_kills_are_dealt_out_to_the_last():
    for n in (1, 6, 20, 50, 51):
        assert sum(shares(n, False).values()) == n
    assert sum(shares(6, True).values()) == 6
