"""A server whose file of changes is damaged, or that is killed while it writes it.

Before the kill there are inputs of one caller in a row, which are joined, and a feed that repeats
itself, which is an event.
"""

import json
import random
import shutil
import socket
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tools.faults.commands import POLL_SECONDS, Ended, Running
from tools.faults.counting import Count
from tools.faults.damaging import Faults, damage
from tools.faults.jobs import Bench, BenchError, linked
from tools.faults.killing import FAULT
from tools.faults.kinds import OF_A_SERVER
from tools.faults.trial import Trial

from sonde.core.errors import StoreError
from sonde.serving.kept import NAME, read_kept

READY_SECONDS, COMMIT = 120.0, "0.05"
REPLICA = "traffic/0"
VARIED, SAME = 40, 64
"""Inputs of a varied feed, and equal inputs that are a change after it."""


class _Client:
    """Asks a server, and tells it the truth about each answer."""

    def __init__(self, bench: Bench, folder: Path, seed: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        words = "serve nets:make left.sonde --log traffic --quiet"
        more = ("--commit", COMMIT, "--port", f"{self.port}")
        self._start = lambda: bench.commands.start((*words.split(), *more), folder)
        self._rng, self.n_told = random.Random(seed), 0

    def start(self) -> Running:
        return self._start()

    def ask(self, path: str, body: Any = None, caller: str = "") -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "X-Client": caller}
        url = f"http://127.0.0.1:{self.port}{path}"
        with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as answer:
            return json.loads(answer.read())

    def wait(self, running: Running) -> None:
        """Wait until the server is ready."""
        until = time.monotonic() + READY_SECONDS
        while not running.is_over() and time.monotonic() < until:
            with suppress(OSError, ValueError):
                self.ask("/v2/health/ready")
                return
            time.sleep(POLL_SECONDS)
        raise BenchError(f"serve: not ready; {running.end(0.0).said}")

    def tell(self) -> None:
        """Ask for an answer, and tell whether it was right."""
        found = self.ask("/predict", {"inputs": [self._row()]})["answers"][0]
        self.ask("/feedback", {"id": found["id"], "truth": str(found["answer"])})
        self.n_told += 1

    def _row(self) -> list[float]:
        return [self._rng.gauss(0, 1) for _ in range(16)]

    def trouble(self) -> None:
        """Send many inputs of the same caller, then a varied feed, then equal inputs."""
        for caller, rows in (
            ("a batch job", [self._row() for _ in range(VARIED)]),
            ("", [self._row() for _ in range(VARIED)]),
            ("", [self._row()] * SAME),
        ):
            self.ask("/predict", {"inputs": rows}, caller)

    def changes(self) -> tuple[Any, int]:
        """Return the events that the server knows, and how many inputs were joined."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        (joined,) = (line for line in lines if line.startswith("sonde_inputs_joined "))
        return self.ask("/changes")["events"], int(float(joined.split()[1]))

    def n_known(self) -> int:
        """Return how many answers the server knows to be right or wrong."""
        return int(self.ask("/feedback")["all"]["n"])


def killed_servers(bench: Bench, rng: random.Random, n: int) -> Iterator[Trial]:
    """Yield trials in which a server dies between two commits, or within one, and starts again."""
    for number in range(n):
        folder = _placed(bench, f"served {number}")
        client = _Client(bench, folder, number)
        with client.start() as running:
            client.wait(running)
            client.trouble()
            while not _events(folder):
                client.tell()
            until = time.monotonic() + 0.4 * rng.random()
            while time.monotonic() < until:
                client.tell()
            running.kill()
        yield _restarted(client, folder)
        shutil.rmtree(folder)


def _events(folder: Path) -> list[Any]:
    """Return the events in the file of a server."""
    found = read_kept(folder / REPLICA)
    return [] if found is None or found["changes"] is None else found["changes"]["events"]


def _restarted(client: _Client, folder: Path) -> Trial:
    """Return what came of a kill: the counts of the last commit or the one before it are known."""
    wrong, kept, found = "", 0, None
    try:
        found = read_kept(folder / REPLICA)
        kept = sum(n for _, n in found["feedback"]) if found else 0
    except StoreError as error:
        wrong = f"half a file: {error}"
    with client.start() as running:
        client.wait(running)
        n_known, changes = client.n_known(), client.changes()
    if not wrong and found:
        held = found["changes"]["events"], found["changes"]["joined"]
        wrong = "" if held == changes and all(held) else f"{held} in the file, then {changes}"
    if not wrong and not 0 < kept <= client.n_told:
        wrong = f"{kept} of {client.n_told} answers in the file"
    if not wrong and n_known != kept:
        wrong = f"{kept} answers in the file, {n_known} after the restart"
    seen = f"{client.n_told} answers told, {kept} in the file"
    return Trial(FAULT, "serve", Count(), same=not wrong, clear=False, wrong=wrong, seen=seen)


def damaged_servers(bench: Bench, faults: Faults) -> Iterator[Trial]:
    """Yield trials in which a file of a server is damaged: it tells so, and serves."""
    whole = _placed(bench, "served")
    client = _Client(bench, whole, 0)
    with client.start() as running:
        client.wait(running)
        while not (whole / REPLICA / NAME).is_file():
            client.tell()
    for where, part in OF_A_SERVER.items():
        for fault in faults:
            folder = bench.top / f"{fault} {where}"
            linked(whole, folder)
            (victim,) = folder.glob(part.pattern)
            seen = damage(victim, fault, faults.rng)
            client = _Client(bench, folder, 1)
            with client.start() as running:
                client.wait(running)
                n_known = client.n_known()
                running.kill()
                ended = running.end()
            wrong = _untold(ended, victim.name, n_known)
            note = f"{seen}; {ended.said}"
            yield Trial(fault, where, Count(), False, not wrong, wrong, note)
            shutil.rmtree(folder)


def _untold(ended: Ended, name: str, n_known: int) -> str:
    lines: Sequence[str] = [line for line in ended.err.splitlines() if name in line]
    if "Traceback" in ended.err:
        return "a traceback"
    if len(lines) != 1:
        return "not told in one line"
    return "damaged counts were taken" if n_known else ""


def _placed(bench: Bench, name: str) -> Path:
    folder = bench.top / name
    folder.mkdir()
    shutil.copyfile(bench.source / "left.sonde", folder / "left.sonde")
    return folder
