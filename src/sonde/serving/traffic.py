"""Statistics of the traffic, committed as ordinary state files that can be merged.

A replica owns a folder below the folder of the traffic. It has one file for each period, and
rewrites it by an atomic rename every few seconds, so that a kill loses at most the last of these.
The header names the spans of time that are in the file, and how each ended.
"""

import logging
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from sonde.core.batch import Batch
from sonde.core.errors import SondeError, StateError
from sonde.core.stream import Stream
from sonde.core.wording import plural
from sonde.engine.passes import observe_unit
from sonde.engine.requests import States
from sonde.measure import Covariance
from sonde.run.fitting.fitted import Fitted
from sonde.run.fitting.group_counts import kept_draws, smallest_draws
from sonde.run.fitting.header import make_header
from sonde.run.fitting.traffic import TRAFFIC
from sonde.run.instruments.tasks import assign, error_sample, requests_of
from sonde.serving.replica_folder import ReplicaFolder

_log = logging.getLogger("sonde")

AT_ONCE = 256
FORMAT = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True)
class Schedule:
    """Times at which traffic is committed and a new file begins.

    Parameters
    ----------
    commit_seconds : float, default=10.0
        A kill loses the traffic of at most this time.
    period_seconds : float, default=3600.0
        Time of one file.
    period_inputs : int or None, default=None
        Inputs of one file at most.
    """

    commit_seconds: float = 10.0
    period_seconds: float = 3600.0
    period_inputs: int | None = None


class Traffic:
    """The traffic of one replica, in memory and in its files.

    Parameters
    ----------
    own : ReplicaFolder
        The folder of this replica; released at the end.
    stream : Stream
        How the served model is read: sites, reducers, model.
    schedule : Schedule

    Attributes
    ----------
    n_failed : int
        Commits that failed.
    last_commit : float
        Time of the last commit, in seconds since 1970; 0 if there was none.
    is_failing : bool
        True if the last commit failed.
    """

    def __init__(self, own: ReplicaFolder, stream: Stream, schedule: Schedule) -> None:
        self.schedule = schedule
        self._lock, self._own, self.folder = threading.RLock(), own, own.path
        self.n_failed, self.last_commit, self.is_failing = 0, 0.0, False
        self._tasks = tuple(assign([Covariance()], stream.schema, None))
        self._sample = error_sample(self._tasks, stream, None)
        self._wanted = requests_of(self._tasks, self._sample, None)
        self._header, self._seed = make_header(stream, [], {}, None), stream.seed
        self._waiting: list[Batch] = []
        self._begin(self._newest())

    def _newest(self) -> Fitted | None:
        """Return the last file if it is of this model and its period has not ended."""
        paths = sorted(self.folder.glob("*.sonde"))
        if not paths:
            return None
        try:
            newest = Fitted.load(paths[-1])
        except StateError as error:
            _log.warning("%s cannot be read: %s Starting a new file.", paths[-1], error)
            return None
        traffic = newest.header.get(TRAFFIC)
        same = all(newest.header[n] == self._header[n] for n in ("model", "reading", "sites"))
        if not (traffic and same and newest.requests.keys() == self._wanted.keys()):
            return None
        age = time.time() - _seconds(traffic["spans"][0]["begin"])
        return newest if 0 <= age < self.schedule.period_seconds else None

    def _begin(self, earlier: Fitted | None = None) -> None:
        """Begin a file, or continue one."""
        self._until = time.monotonic() + self.schedule.period_seconds
        now = _stamp(time.time())
        span = {"begin": now, "until": now, "inputs": 0, "end": "running"}
        self._changed = False
        if earlier is None:
            self.name = f"{datetime.now(UTC).strftime(FORMAT)}-{secrets.token_hex(3)}"
            self.states: States = dict.fromkeys(self._wanted)
            self.counters: dict[str, int] = {}
            self._draws, self._spans, self.n_inputs = np.zeros(0, np.uint64), [span], 0
            return
        traffic = earlier.header[TRAFFIC]
        spans = [dict(one) for one in traffic["spans"]]
        if spans[-1]["end"] == "running":
            spans[-1]["end"] = "killed"
        self.name, self._spans = traffic["name"], [*spans, span]
        self.states = {i: earlier.states.get(i) for i in self._wanted}
        self.counters = dict(earlier.header["counters"])
        self._draws = _draws_in(earlier.header)
        self.n_inputs = int(earlier.header["data"]["n_examples"])
        begun = time.time() - _seconds(spans[0]["begin"])
        self._until = time.monotonic() + self.schedule.period_seconds - begun

    @property
    def path(self) -> Path:
        """The file of the current period."""
        return self.folder / f"{self.name}.sonde"

    def add(self, batch: Batch) -> None:
        """Add the rows of some answered inputs."""
        with self._lock:
            if self._is_over():
                self.commit("period")
                self._begin()
            self._waiting.append(replace(batch, logits=None, head=None))
            self.n_inputs += len(batch)
            self._spans[-1]["inputs"] += len(batch)
            self._changed = True
            if sum(map(len, self._waiting)) >= AT_ONCE:
                self._observe()

    def _is_over(self) -> bool:
        most = self.schedule.period_inputs
        full = most is not None and self.n_inputs >= most
        return self.n_inputs > 0 and (full or time.monotonic() >= self._until)

    def _observe(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        self.states = observe_unit(waiting, self._wanted, None, self.counters, self.states)
        keys = [key for batch in waiting for key in batch.group_keys]
        self._draws = smallest_draws(np.union1d(self._draws, kept_draws(keys, self._seed)))

    def commit(self, end: str = "running") -> bool:
        """Write the file of the current period if there is anything new.

        Parameters
        ----------
        end : {"running", "stopped", "period"}
            Why the span ends, or that it goes on.

        Returns
        -------
        bool
            Whether a file was written. A failure is logged; what is in memory is kept.
        """
        with self._lock:
            self._observe()
            if not self.n_inputs or not (self._changed or end != "running"):
                return False
            self._spans[-1] |= {"until": _stamp(time.time()), "end": end}
            try:
                self._fitted().save(self.path)
            except (SondeError, OSError) as error:
                self.n_failed, self.is_failing = self.n_failed + 1, True
                _log.error(
                    "the statistics of the traffic could not be written: %s They stay in memory.",
                    error,
                )
                return False
            self._changed, self.is_failing, self.last_commit = False, False, time.time()
            return True

    def close(self) -> None:
        """Commit, and release the folder."""
        with self._lock:
            self.commit("stopped")
            self._own.close()

    def _fitted(self) -> Fitted:
        own = blake2b(f"{self.folder.name}|{self.name}".encode(), digest_size=16).hexdigest()
        traffic = {
            "name": self.name,
            "commit_seconds": self.schedule.commit_seconds,
            "spans": [dict(span) for span in self._spans],
        }
        counts = {"n_examples": self.n_inputs, "n_groups": self.n_inputs, "fingerprint": own}
        header = {
            **self._header,
            "group_draws": self._draws.astype("<u8").tobytes().hex(),
            "units": [{"plan": own, "data": own, "units": [[0, 0]]}],
            "counters": dict(sorted(self.counters.items())),
            "data": {**self._header["data"], **counts, "grouped": False, "label_names": []},
            TRAFFIC: traffic,
        }
        header["data"].pop("missing", None)
        return Fitted(self._tasks, dict(self.states), header, None, self._sample)


def _draws_in(header: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(header["group_draws"]), dtype="<u8").astype(np.uint64)


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def describe(header: dict[str, Any]) -> str:
    """Describe the contents of a traffic file, and what it lacks."""
    traffic = header[TRAFFIC]
    parts = [plural(sum(s["inputs"] for s in traffic["spans"]), "input")]
    for span in traffic["spans"]:
        parts.append(f"from {span['begin']} to {span['until']}")
        if span["end"] == "killed":
            parts.append(
                f"the server was killed: up to {traffic['commit_seconds']:g} s of traffic after "
                "this time are missing"
            )
    return "; ".join(parts) + "."


def own_keys(names: Sequence[str]) -> list[bytes]:
    """Return keys for inputs that reveal nothing about them: hashes of request ids."""
    return [blake2b(name.encode(), digest_size=16).digest() for name in names]
