"""A real Ctrl-C at many moments: exit 130, nothing half written, and the way to go on works."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cli_case import run_words

STALL, ROOT = Path(__file__).with_name("stall.py"), Path(__file__).parents[2]
FIT = "fit mahalanobis,spectrum nets:make x.npz -o out/a.sonde --unit-size 100"
SCAN = "scan nets:make x.npz -o out/a.json --unit-size 100"
NETS = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()).eval()
"""
KEPT = "kept in out/a.run; the same command continues from there"
NOTHING = "No incomplete file is left; run the same command again"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT"),
]


class Stalling:
    """A process that forks commands, each of which waits at one moment."""

    def __init__(self, *how):
        self.process = subprocess.Popen(
            [sys.executable, STALL, *how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
            start_new_session=True,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate(timeout=100)

    def stopped(self, words, moment, n=1, text="", group=False):
        """Return how a command ends that gets SIGINT at a moment, as its terminal would send it."""
        said = Path("said").absolute()
        asked = {"words": words.split(), "moment": moment, "n": n, "text": text}
        where = {"cwd": str(Path.cwd()), "path": os.environ["PYTHONPATH"], "said": str(said)}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked | where) + "\n")
        self.process.stdin.flush()
        sign, pid = self.process.stdout.readline().split()
        assert sign == "waiting", said.read_text()
        (os.killpg if group else os.kill)(int(pid), signal.SIGINT)
        answer, err = self.process.stdout.readline(), said.read_text()
        assert answer == "ended 130\n", err
        assert "Traceback" not in err
        return err


@pytest.fixture(scope="module")
def stalling():
    with Stalling("warm") as found:
        yield found


@pytest.fixture
def stopped(stalling):
    return stalling.stopped


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a model and data, which is the current one."""
    rng = np.random.default_rng(0)
    (tmp_path / "nets.py").write_text(NETS)
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(600, 6)).astype("f4"))
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    return tmp_path


def files(place):
    """Return what a command left, checked to hold no half of a file."""
    found = sorted(p.relative_to(place).as_posix() for p in (place / "out").rglob("*"))
    assert not [name for name in found if ".tmp-" in name]
    return found


def ended(words):
    """Run a command to its end in this process."""
    ran = run_words(*words.split())
    assert ran.code == 0, ran.err


def plain(path):
    """Return a report without what differs from run to run."""
    report = json.loads(path.read_text())
    del report["hash"]
    for name in ("started", "wall_seconds", "peak_memory_bytes", "command"):
        del report["provenance"][name]
    return report


def test_before_the_pass_nothing_is_left(place, stopped):
    assert NOTHING in stopped(FIT, "sonde.data.listing:_list_block")
    with Stalling() as cold:
        assert NOTHING in cold.stopped(FIT, "torch")
    assert files(place) == []


FIT_MOMENTS = {
    "pass": ("sonde.run.passes.ranges:observe_unit", 4, "", "interrupted after 3 of 6 units."),
    "commit": ("sonde.files.durable:replace", 3, "states", "interrupted after 2 of 6 units."),
    "results": ("sonde.run.fitting.fitted:result_with_error", 1, "", KEPT),
    "writing": ("sonde.files.durable:replace", 1, "a.sonde", KEPT),
}


@pytest.mark.truth("the undisturbed run")
def test_a_resumed_fit_gives_the_same_bytes(place, stopped):
    ended(FIT)
    expected = (place / "out/a.sonde").read_bytes()
    for moment, n, text, said in FIT_MOMENTS.values():
        (place / "out/a.sonde").unlink()
        err = stopped(FIT, moment, n, text)
        assert said in err
        assert KEPT in err
        assert "out/a.sonde" not in files(place)
        ended(FIT + " --resume")
        assert (place / "out/a.sonde").read_bytes() == expected
        assert files(place) == ["out/a.sonde"]


@pytest.mark.truth("the undisturbed run")
def test_a_resumed_scan_gives_the_same_report(place, stopped):
    ended(SCAN)
    expected = plain(place / "out/a.json")
    (place / "out/a.json").unlink()
    err = stopped(SCAN, "sonde.run.passes.ranges:observe_unit", 4)
    assert "stopped after 3 of 6 units; run the same command to continue" in err
    partial = json.loads((place / "out/a.json").read_text())
    assert partial["partial"] == {"done": 3, "total": 6}
    (place / "out/a.json").unlink()
    assert KEPT in stopped(SCAN + " --resume", "sonde.files.durable:replace", 1, "a.json")
    assert "out/a.json" not in files(place)
    ended(SCAN + " --resume")
    assert plain(place / "out/a.json") == expected
    assert files(place) == ["out/a.json"]


@pytest.mark.truth("the undisturbed run")
def test_a_study_goes_on_after_its_finished_seeds(place, stopped):
    words = "study nac --tiny --seeds 3 -o "
    ended(words + "whole")
    err = stopped(words + "out", "sonde_studies.study:figures_of", 3)
    assert "Finished work is kept in out; the same command continues from there" in err
    assert files(place) == ["out/nac.tiny.seeds.json"]
    ran = run_words(*(words + "out").split())
    assert ran.err.count("known from an earlier run") == 2
    expected, found = (
        json.loads((place / f / "nac.tiny.json").read_text()) for f in ("whole", "out")
    )
    assert found["figures"] == expected["figures"]
    assert NOTHING in stopped(words + "none", "sonde_studies.study:figures_of", 1)


def test_workers_of_an_interrupted_terminal_are_silent(place, stopped):
    words = FIT + " --workers 2"
    err = stopped(words, "sonde.run.passes._processes:_opened", group=True)
    assert KEPT in err
    ended(words + " --resume")
    assert files(place) == ["out/a.sonde"]


MOMENTS_OF_RESULTS = {
    "sonde.findings.scan:run_rule": "a rule",
    "sonde.findings.document:similarity": "writing",
}


@pytest.mark.truth("the undisturbed run")
def test_a_scan_that_is_stopped_among_its_results_reports_what_it_has(place, stopped):
    ended(SCAN)
    expected = plain(place / "out/a.json")
    for moment in MOMENTS_OF_RESULTS:
        (place / "out/a.json").unlink()
        err = stopped(SCAN, moment, 3 if "rule" in moment else 1)
        assert "stopped after all data were read; run the same command to continue" in err
        report = json.loads((place / "out/a.json").read_text())
        assert report["partial"] == {"done": 6, "total": 6}
        assert [s["site"] for s in report["sites"]] == [s["site"] for s in expected["sites"]]
        withheld = [c for c in report["checks"] if "Ctrl-C" in (c["reason"] or "")]
        assert bool(withheld) == ("rule" in moment)
        ended(SCAN + " --resume")
        assert plain(place / "out/a.json") == expected


@pytest.mark.truth("the undisturbed run")
def test_a_scan_that_is_stopped_in_other_reports_data(place, stopped):
    rng = np.random.default_rng(1)
    np.savez(place / "y.npz", x=rng.normal(size=(600, 6)).astype("f4") + 1)
    words = SCAN + " --versus y.npz"
    ended(words)
    expected = plain(place / "out/a.json")
    assert expected["versus"] is not None
    for n, done in ((7, 6), (10, 9)):
        (place / "out/a.json").unlink()
        err = stopped(words + " --fresh", "sonde.run.passes.ranges:observe_unit", n)
        assert f"stopped after {done} of 12 units; run the same command to continue" in err
        report = json.loads((place / "out/a.json").read_text())
        assert report["partial"] == {"done": done, "total": 12}
        assert report["sites"] == expected["sites"]
        reasons = {c["code"]: c["reason"] for c in report["checks"] if c["state"] == "withheld"}
        assert (report["versus"] is None) == (done == 6)
        awaited = {code for code, why in reasons.items() if "before OTHER was read" in (why or "")}
        assert awaited == (
            {"SND051", "SND052", "SND053", "SND054", "SND055"} if done == 6 else set()
        )
        ended(words + " --resume")
        assert plain(place / "out/a.json") == expected
        assert files(place) == ["out/a.json"]


@pytest.mark.parametrize("words", [FIT, SCAN])
def test_before_the_first_unit_is_done_nothing_is_kept(place, stopped, words):
    err = stopped(words, "sonde.run.passes.ranges:observe_unit", 1)
    assert "interrupted after 0 of 6 units. No unit was finished, so nothing is kept" in err
    assert "--unit-size" in err
    assert files(place) == []
