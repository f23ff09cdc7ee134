"""What is kept of the traffic of a replica: statistics, changes, feedback; shared with others."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

from sonde.core.errors import SondeError, StoreError
from sonde.run.fitting.fitted import Fitted
from sonde.run.instruments.entries import Key
from sonde.serving.changes import ChangeAlarm, Changes, Seen
from sonde.serving.feedback import Feedback
from sonde.serving.figures import Figures
from sonde.serving.kept import read_kept, write_kept
from sonde.serving.peers import Peers
from sonde.serving.recent_traffic import RecentTraffic
from sonde.serving.replica_folder import ReplicaFolder
from sonde.serving.served import Answer, Answered, Item, ServedModel
from sonde.serving.traffic import Schedule, Traffic
from sonde.serving.verdicts import Verdict

_log = logging.getLogger("sonde")
POLL_SECONDS, PATIENCE_SECONDS = 0.1, 10.0
"""How often, and how long, a replica looks whether the leader did what it was asked for."""


@final
class Monitor:
    """Statistics, changes and feedback of the traffic of one replica.

    Its methods run in one thread, except those that only read.

    Parameters
    ----------
    log : path or None
        Folder of the traffic's statistics, for all replicas.
    shared : path or None
        Folder through which replicas share what they know; ``log`` serves as well. None for a
        single replica.
    schedule : Schedule
    figures : Figures
    recent : RecentTraffic

    Attributes
    ----------
    changes : Changes or None
        None without a probe.
    traffic : Traffic or None
        None without ``log``, and before the form of the inputs is known.
    feedback : Feedback
    peers : Peers or None
        None for a single replica.
    """

    def __init__(
        self,
        log: str | Path | None,
        shared: str | Path | None,
        schedule: Schedule,
        figures: Figures,
        recent: RecentTraffic,
    ) -> None:
        self.log, self._shared, self.schedule = log, shared, schedule
        self._figures, self.recent, self.feedback = figures, recent, Feedback()
        self.changes: Changes | None = None
        self.traffic: Traffic | None = None
        self.peers: Peers | None = None
        self._own: ReplicaFolder | None = None
        self._unsent: list[dict[str, Any]] = []
        self._kept: dict[str, Any] = {}
        self._keep_fails = False
        self._is_closed = False

    @property
    def is_failing(self) -> bool:
        """True if the last commit of the traffic failed; it is tried again."""
        return self._keep_fails or (self.traffic is not None and self.traffic.is_failing)

    @property
    def last_commit(self) -> float:
        """Time of the last commit, in seconds since 1970; 0 if there was none."""
        return 0.0 if self.traffic is None else self.traffic.last_commit

    @property
    def leads(self) -> bool:
        """True if changes are detected here."""
        return self.peers is None or self.peers.is_leader

    def open(self, served: ServedModel) -> None:
        """Take a folder, and continue with what an earlier process knew."""
        if served.fitted is not None:
            self.changes = Changes(served.fitted)
        where = self._shared if self.log is None else self.log
        if where is None:
            return
        self._own = ReplicaFolder(where)
        self.feedback.share(self._own.path)
        own = [*_kept_in([self._own.path])]
        for kept in own:
            self.feedback.restore(kept["feedback"])
        if self._shared is not None:
            self.peers = Peers(self._own)
            self.peers.try_to_lead()
        if self.leads:
            self._inherit(own)
        if served.is_open:
            self._begin(served)

    def _begin(self, served: ServedModel) -> None:
        if self.log is not None and self._own is not None and not self._is_closed:
            self.traffic = Traffic(self._own, served.stream, self.schedule)

    def _inherit(self, mine: Sequence[Mapping[str, Any]]) -> None:
        """Continue with the events that were known last, here or in another replica."""
        if self.changes is None or self._own is None:
            return
        every = [] if self.peers is None else sorted(self._own.shared.glob("*/"))
        others = _kept_in(folder for folder in every if folder != self._own.path)
        with_changes = [one for one in (*mine, *others) if one["changes"] is not None]
        if with_changes:
            self.changes.restore(max(with_changes, key=lambda one: one["at"])["changes"])
            self._show()

    def observe(
        self, served: ServedModel, items: Sequence[Item], answered: Answered, at: float
    ) -> None:
        """Record the inputs and answers of a forward pass."""
        if self.traffic is None:
            self._begin(served)
        rows = [
            (one.verdict, _seen(item, one))
            for item, one in zip(items, answered.answers, strict=True)
            if one.verdict is not None
        ]
        if self.changes is not None and self.leads:
            self._tell(self.changes.update([v for v, _ in rows], at, [seen for _, seen in rows]))
        elif self.changes is not None:
            self._unsent.append({"at": at, "rows": [*_packed(self.changes.keys, rows)]})
        if self.traffic is not None:
            self.traffic.add(answered.batch)

    def refuse(
        self,
        contents: Sequence[bytes],
        about: Sequence[str],
        at: float,
        callers: Sequence[bytes],
    ) -> None:
        """Record inputs that were refused, by a hash and the column that was wrong."""
        if self.changes is not None and self.leads:
            self._tell(self.changes.refuse(contents, about, at, callers))
        elif self.changes is not None:
            refused = [
                [content.hex(), column, caller.hex()]
                for content, column, caller in zip(contents, about, callers, strict=True)
            ]
            self._unsent.append({"at": at, "refused": refused})

    def _take(self, message: Mapping[str, Any]) -> None:
        """Record what another replica saw, or what it was asked for."""
        if self.changes is None:
            return
        if "ack" in message:
            self.changes.acknowledge(message["ack"])
            self._show()
        for part in message.get("seen", ()):
            if "rows" in part:
                rows = [*_unpacked(self.changes.keys, part["rows"])]
                seen = [one for _, one in rows]
                self._tell(self.changes.update([v for v, _ in rows], part["at"], seen))
            else:
                contents, about, callers = zip(*part["refused"], strict=True)
                hashes, names = ([*map(bytes.fromhex, one)] for one in (contents, callers))
                self._tell(self.changes.refuse(hashes, about, part["at"], names))

    def _tell(self, opened: Iterable[ChangeAlarm]) -> None:
        """Report changes that began."""
        for alarm in opened:
            self._figures.changes.labels(alarm.site).inc()
            _log.warning(
                "the distribution of the traffic changed: %s at %s, from input %d on; "
                "detected at input %d. POST /changes/ack takes it as the new normal.",
                alarm.detector,
                alarm.site,
                alarm.began,
                alarm.told,
            )
        self._show()

    def _show(self) -> None:
        """Set the gauges of changes and repetitions."""
        if self.changes is not None:
            self._figures.changed.set(self.changes.current is not None)
            self._figures.repeated.set(self.changes.repetitions.n_repeated)
            self._figures.joined.set(self.changes.callers.n_joined)

    def share(self) -> None:
        """Exchange with the other replicas what they know."""
        if self.peers is None:
            return
        if self.peers.try_to_lead():
            self._inherit(())
        if self.peers.is_leader:
            for message in self.peers.received():
                self._take(message)
        elif self._unsent:
            unsent, self._unsent = self._unsent, []
            self.peers.send({"seen": unsent})
        leads = self.peers.is_leader and self.changes is not None
        self.peers.publish(
            {
                "changes": self.changes.state() if leads and self.changes is not None else None,
                "feedback": self.feedback.counts(),
                "recent": self.recent.counts(),
                "metrics": self._figures.snapshot(),
            }
        )

    def others(self) -> dict[str, dict[str, Any]]:
        """Return the figures of each other replica."""
        return {} if self.peers is None else self.peers.others()

    def events(self) -> list[dict[str, Any]]:
        """Return the changes of the traffic of all replicas, from the first one on."""
        if self.changes is not None and self.leads:
            return self.changes.state()["events"]
        with_changes = [
            one["changes"] for one in self.others().values() if one["changes"] is not None
        ]
        return with_changes[0]["events"] if with_changes else []

    def left_out(self) -> dict[str, int]:
        """Return the inputs of all replicas that the change detectors did not count, by reason."""
        if self.changes is not None and self.leads:
            state = self.changes.state()
        else:
            states = [one["changes"] for one in self.others().values()]
            state = next((one for one in states if one is not None), {})
        return {name: state.get(name, 0) for name in ("repeated", "joined")}

    def accuracy(self) -> dict[str, Any]:
        """Return the accuracy by feedback over all replicas."""
        return self.feedback.figures([one["feedback"] for one in self.others().values()])

    def acknowledge(self) -> dict[str, Any] | None:
        """End the change that lasts; return it, or None if there is none."""
        if self.changes is None:
            return None
        if self.leads:
            ended = self.changes.acknowledge(time.time())
            self._show()
            return None if ended is None else asdict(ended)
        assert self.peers is not None  # a single replica leads
        before = self.events()
        if not before or before[-1]["ended_at"] is not None:
            return None
        self.peers.send({"ack": time.time()})
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            time.sleep(POLL_SECONDS)
            same = [one for one in self.events() if one["first"] == before[-1]["first"]]
            if same and same[0]["ended_at"] is not None:
                return same[0]
        raise StoreError("the replica that detects changes did not answer")

    def renew(self, fitted: Fitted) -> None:
        """Compare the traffic with another calibration; known events are kept."""
        if self.changes is not None:
            state, self.changes = self.changes.state(), Changes(fitted)
            self.changes.restore(state)

    def commit(self) -> None:
        """Write statistics, changes and feedback if there is anything new."""
        if self.traffic is not None:
            n_before = self.traffic.n_failed
            self.traffic.commit()
            self._figures.commits_failed.inc(self.traffic.n_failed - n_before)
        self._keep()

    def _keep(self) -> None:
        """Write changes and feedback, so that a restart continues with them."""
        if self._own is None:
            return
        leads = self.changes is not None and self.leads
        changes = self.changes.state() if leads and self.changes is not None else None
        now = {"changes": changes, "feedback": self.feedback.counts()}
        if now == self._kept or not (self._kept or _says_something(now)):
            return
        try:
            write_kept(self._own.path, {**now, "at": time.time()})
            self._kept, self._keep_fails = now, False
        except SondeError as error:
            self._keep_fails = True
            self._figures.commits_failed.inc()
            _log.error("the changes of the traffic could not be written: %s", error)

    def close(self) -> None:
        """Commit, and release the folder."""
        if self._is_closed:
            return
        self._is_closed = True
        if self.peers is not None and self._unsent:
            self.peers.send({"seen": self._unsent})
        self._keep()
        if self.peers is not None:
            self.peers.close()
        traffic, self.traffic = self.traffic, None
        if traffic is not None:
            traffic.close()
        elif self._own is not None:
            self._own.close()


def _says_something(found: Mapping[str, Any]) -> bool:
    """Return whether a file of changes and feedback would hold more than zeros."""
    is_known = found["changes"] is not None and found["changes"]["n"]
    return bool(is_known) or any(n for _, n in found["feedback"])


def _kept_in(folders: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Yield the readable files of replicas; a damaged file is told and left out."""
    for folder in folders:
        try:
            kept = read_kept(folder)
        except StoreError as error:
            _log.warning("%s Changes and the counts of feedback start anew.", error)
        else:
            if kept is not None:
                yield kept


def _seen(item: Item, answer: Answer) -> Seen:
    """Return what the change detectors read of an input and its answer."""
    return Seen(item.content, item.numbers, answer.answer, answer.probability, item.caller)


def _packed(keys: Sequence[Key], rows: Iterable[tuple[Verdict, Seen]]) -> Iterator[list[Any]]:
    """Yield each input as JSON values, its scores in the order of the detectors."""
    for verdict, seen in rows:
        scores = [verdict.each[key][0] if key in verdict.each else None for key in keys]
        content, caller = seen.content.hex(), seen.caller.hex()
        yield [scores, content, dict(seen.numbers), seen.answer, seen.probability, caller]


def _unpacked(keys: Sequence[Key], rows: Iterable[Any]) -> Iterator[tuple[Verdict, Seen]]:
    for scores, content, numbers, answer, probability, caller in rows:
        each: dict[Key, tuple[float, float | None]] = {
            key: (x, None) for key, x in zip(keys, scores, strict=True) if x is not None
        }
        hashes = bytes.fromhex(content), bytes.fromhex(caller)
        seen = Seen(hashes[0], numbers, answer, probability, hashes[1])
        yield Verdict(None, None, each, None), seen
