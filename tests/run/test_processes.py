"""Worker processes: what they may take of the system, and what becomes of them."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import sonde
from sonde.core.errors import MachineError
from sonde.core.stream import Stream
from sonde.measure import StableRank
from sonde.run.passes.crew import Crew
from sonde.run.passes.hand_out import hand_out
from sonde.run.passes.job import Job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL"),
]
PROGRAM = """
import resource, sys, time
import torch
from torch import nn
import sonde
from sonde.detect import Mahalanobis

class Slow(nn.Linear):
    def forward(self, x):
        time.sleep(float(sys.argv[3]))
        return super().forward(x)

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (96, int(sys.argv[1])))
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(int(sys.argv[2]))], Slow(4, 4)).eval()
    how = {"workers": 2, "progress": False}
    x, held = torch.randn(40, 4), torch.randn(300, 4)
    fitted = sonde.fit(Mahalanobis(), sonde.read(net, x, batch_size=8), **how)
    print("fitted", flush=True)
    stream = sonde.read(net, held, batch_size=2)
    print(len(sonde.calibrate(fitted, stream, **how).tasks), "calibrated")
"""


def start(place: Path, *words: object) -> subprocess.Popen[str]:
    (place / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(place / "program.py"), *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_workers_need_no_more_open_files_than_a_model_has_tensors(tmp_path):
    out, err = start(tmp_path, 1000, 60, 0).communicate(timeout=200)
    assert "61 calibrated" in out, err


def test_too_many_tensors_for_the_system_are_told(tmp_path):
    _, err = start(tmp_path, 96, 60, 0).communicate(timeout=200)
    assert "MachineError: run: workers share each tensor of a model as an open file" in err


def test_workers_end_with_a_driver_that_is_killed(tmp_path):
    with start(tmp_path, 1000, 2, 0.1) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "fitted\n"
        while len(alive(driver.pid)) < 4:  # beside the driver a tracker, and two workers
            time.sleep(0.2)
        time.sleep(1.0)
        driver.kill()
    until = time.monotonic() + 10.0
    while (left := alive(driver.pid)) and time.monotonic() < until:
        time.sleep(0.2)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def alive(session: int) -> list[int]:
    """Return the processes of a session."""
    listed = subprocess.run(["ps", "-eo", "pid,sess,stat"], capture_output=True, text=True)
    rows = [line.split() for line in listed.stdout.splitlines()[1:]]
    return [int(p) for p, s, stat in rows if s == str(session) and not stat.startswith("Z")]


@pytest.mark.truth("the weights of a linear layer: 4 MiB and 4 KiB")
def test_a_model_that_does_not_fit_into_shared_memory_is_refused(tmp_path, monkeypatch):
    net = nn.Sequential(nn.Linear(1024, 1024)).eval()
    stream, how = sonde.read(net, torch.randn(20, 1024)), {"workers": 1, "progress": False}
    free = 4 * 2**20 + 4095
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(MachineError, match=r"4 MiB, of which 4 MiB are free.* --shm-size"):
        sonde.fit(StableRank(), stream, **how)
    free += 1
    assert sonde.fit(StableRank(), stream, **how).tasks


SPANS = [(i, i + 1) for i in range(40)]


@dataclass(frozen=True)
class Slowly(Job):
    """A job that is larger than a pipe holds, with answers that are, too."""

    large: np.ndarray

    def work(self, start: int, stop: int) -> np.ndarray:
        time.sleep(0.05)
        return np.full(2**17, start)


def killer(deaths: list[int], until: threading.Event) -> None:
    """Kill the first process at its birth, then another one later."""
    waits = iter((0.0, 2.5))
    wait = next(waits)
    while not until.wait(wait):
        wait = 0.001
        if new := [p for p in active_children() if p.pid not in deaths]:
            deaths.append(new[-1].pid or 0)
            os.kill(deaths[-1], signal.SIGKILL)
            if (wait := next(waits, -1.0)) < 0:
                return


@pytest.mark.timeout(120)
@pytest.mark.truth("the ranges that were handed out")
def test_ranges_of_killed_workers_go_to_others():
    """Killed while it starts, a process leaves a full pipe; later, a range or half an answer."""
    job = Slowly(Stream.of({"a": torch.zeros(1, 1)}), 1, np.arange(2**16))
    deaths, over = list[int](), threading.Event()
    threading.Thread(target=killer, args=(deaths, over), daemon=True).start()
    answers = {span: int(a[-1]) for span, a in hand_out(job, SPANS, Crew(2))}
    over.set()
    assert len(deaths) == 2
    assert answers == {span: span[0] for span in SPANS}
    assert not active_children()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_the_first_process_too_starts_with_ctrl_c_held_back():
    program = """
import multiprocessing, signal, time
from sonde.run.passes._processes import _sigint_held

if __name__ == "__main__":
    for _ in range(2):
        process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
        with _sigint_held():
            process.start()
        status = open(f"/proc/{process.pid}/status").read()
        print(int(status.split("SigBlk:")[1].split()[0], 16) >> (signal.SIGINT - 1) & 1)
        process.kill()
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True
    )
    assert ran.stdout.split() == ["1", "1"]


UNGUARDED = """
import torch
import sonde
from sonde.core.stream import Stream
from sonde.measure import StableRank

sonde.fit(StableRank(), Stream.of(torch.randn(600, 4)), workers=2, calibrate=0, progress=False)
"""


@pytest.mark.slow
def test_a_script_without_the_main_guard_is_told_about_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    said = ran.stderr.strip().splitlines()
    assert ran.returncode == 1
    assert "Put the code that runs below the line if __name__ == '__main__':" in said[-1]
    assert sum(line.startswith("sonde.core.errors.") for line in said) == 1
