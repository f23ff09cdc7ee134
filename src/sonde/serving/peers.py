"""Messages between the replicas of a server, through a folder that they share.

Each replica writes its figures once a second. One replica leads: the others send it what they
answered, so that changes are detected in the traffic of all replicas, and told once.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, final

from sonde.files.durable import atomic_write
from sonde.serving.replica_folder import ReplicaFolder, take_lock

STATUS, SENT, LEADER = "status.json", "sent", "leader"
SECONDS = 1.0
"""How often a replica writes its figures."""
STALE_SECONDS = 15.0
"""Age of the figures of a replica that has gone."""
MOST_SENT = 600
"""Messages that wait for a leader; further ones are dropped."""


@final
class Peers:
    """The other replicas, seen from one of them.

    Parameters
    ----------
    folder : ReplicaFolder

    Attributes
    ----------
    n_dropped : int
        Messages that were dropped because nobody read them.
    """

    def __init__(self, folder: ReplicaFolder) -> None:
        self._folder, self._lead = folder, ExitStack()
        self._n_sent = self.n_dropped = 0
        self._leads_since: float | None = None
        self._led = time.monotonic()

    @property
    def name(self) -> str:
        """The number of this replica."""
        return self._folder.path.name

    @property
    def is_leader(self) -> bool:
        """True if this replica reads the messages of all."""
        return self._leads_since is not None

    def try_to_lead(self) -> bool:
        """Become the leader if there is none; return whether this replica has become it now.

        A lock cannot tell that a process of another machine has ended: the lead of a replica that
        has not written its figures for some time is taken, and it steps back if it was only slow.
        """
        leaders = [one["leads_since"] for one in self.others().values() if one["leads_since"]]
        if leaders:
            self._led = time.monotonic()
        if self._leads_since is not None:
            if max(leaders, default=0.0) > self._leads_since:
                self._leads_since = None
                self._lead.close()
            return False
        is_vacant = time.monotonic() - self._led > STALE_SECONDS
        if take_lock(self._lead, self._folder.shared / LEADER, steal=is_vacant):
            self._leads_since = time.time()
        return self.is_leader

    def publish(self, status: Mapping[str, Any]) -> None:
        """Write the figures of this replica."""
        path = self._folder.path / STATUS
        self._write(path, {"leads_since": self._leads_since, **status})

    def others(self) -> dict[str, dict[str, Any]]:
        """Return the figures of each other replica that lives."""
        states: dict[str, dict[str, Any]] = {}
        for path in sorted(self._folder.shared.glob(f"*/{STATUS}")):
            if path.parent.name == self.name:
                continue
            with suppress(OSError, ValueError):  # written again within a second
                if time.time() - path.stat().st_mtime <= STALE_SECONDS:
                    states[path.parent.name] = json.loads(path.read_text("utf-8"))
        return states

    def send(self, message: Mapping[str, Any]) -> None:
        """Leave a message for the leader."""
        folder = self._folder.path / SENT
        folder.mkdir(parents=True, exist_ok=True)
        if len([*folder.iterdir()]) >= MOST_SENT:
            self.n_dropped += 1
            return
        self._n_sent += 1
        self._write(folder / f"{time.time_ns():020}-{self._n_sent}.json", message)

    def received(self) -> Iterator[dict[str, Any]]:
        """Yield the messages of all replicas in order of time, each once."""
        paths = sorted(self._folder.shared.glob(f"*/{SENT}/*.json"), key=lambda path: path.name)
        for path in paths:
            try:
                content = json.loads(path.read_text("utf-8"))
            except (OSError, ValueError):
                content = None
            path.unlink(missing_ok=True)
            if isinstance(content, dict):
                yield content

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        atomic_write(path, json.dumps(content).encode(), durable=False)

    def close(self) -> None:
        """Give the lead to another replica, and remove the figures of this one."""
        self._lead.close()
        (self._folder.path / STATUS).unlink(missing_ok=True)
