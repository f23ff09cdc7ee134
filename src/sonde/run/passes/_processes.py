"""Work through a plan's ranges in processes on this machine, each over its own connection.

Nothing is shared that a killed process could hold: no queue, no lock. A process that dies gives its
ranges back, another takes its place, and when several died without an answer the run ends.
"""

import logging
import math
import multiprocessing
import os
import pickle
import shutil
import signal
import socket
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from sonde.core.errors import InputError, MachineError
from sonde.core.wording import gib
from sonde.run.passes._actors import WorkerFailure
from sonde.run.passes.crew import Crew
from sonde.run.passes.job import Job, Span

IN_FLIGHT = 2
MOST_DEATHS = 4
LOOK_SECONDS = 1.0
END_SECONDS = 5.0
SHARED_MEMORY = Path("/dev/shm")
UNGUARDED = 86
"""Exit code of a worker whose import of the user's script would start workers."""

_log = logging.getLogger("sonde")


def hand_out_to_processes(
    job: Job, spans: Sequence[Span], crew: Crew
) -> Generator[tuple[Span, Any]]:
    """Yield each range with its result; see ``hand_out``."""
    _check_shared_memory(job)
    _allow_open_files()
    floor = _Floor(job, spans)
    try:
        for _ in range(min(crew.workers, len(spans))):
            floor.hire()
        while floor.has_work:
            yield from floor.hear()
    finally:
        floor.close()


@dataclass(eq=False)
class _Hand:
    """A process, its connection, the unsent job, and its ranges, oldest first."""

    process: BaseProcess
    line: Connection
    parcel: bytes
    flying: deque[Span] = field(default_factory=deque[Span])

    @property
    def end(self) -> str:
        """Return the cause of a process's death, and its last range."""
        code = self.process.exitcode
        how = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
        return f"process {self.process.pid} on {socket.gethostname()}: {how}"

    def send(self, content: bytes) -> None:
        """Send something to a waiting process; a dead process is detected later."""
        with suppress(OSError):
            self.line.send_bytes(content)

    def read(self) -> tuple[list[bytes], bool]:
        """Return everything that the process has sent, and whether it is dead."""
        is_over, contents = self.process.exitcode is not None, []
        try:
            while self.line.poll():
                contents.append(self.line.recv_bytes())
        except (EOFError, OSError):  # it closes its line only when it ends
            self.process.join(END_SECONDS)
            self.process.kill()
            self.process.join()
            is_over = True
        return contents, is_over


class _Floor:
    """The processes of one pass, and the ranges that wait for a process."""

    def __init__(self, job: Job, spans: Sequence[Span]) -> None:
        self._job, self._waiting = job, deque(spans)
        self._hands: list[_Hand] = []
        self._deaths = 0

    @property
    def has_work(self) -> bool:
        """True if a range is waiting or in work."""
        return bool(self._waiting) or any(hand.flying for hand in self._hands)

    def hire(self) -> None:
        """Start a process; it receives ranges after it has asked for the job."""
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            os._exit(UNGUARDED)  # this process imports the user's script, which runs again
        spawn = multiprocessing.get_context("spawn")
        here, there = spawn.Pipe()
        parcel = Parcel(self._job)
        process = spawn.Process(target=serve, args=(there, parcel))
        with there, _sigint_held(), _told_what_cannot_be_sent():
            process.start()
        self._hands.append(_Hand(process, here, parcel.content))

    def hear(self) -> list[tuple[Span, Any]]:
        """Wait until a result arrives or a process ends, and return the results.

        Raises
        ------
        MachineError
            If too many processes died.
        Exception
            What a worker raised.
        """
        lines = [hand.line for hand in self._hands]
        wait([*lines, *(hand.process.sentinel for hand in self._hands)], LOOK_SECONDS)
        answers = []
        for hand in list(self._hands):
            contents, is_over = hand.read()
            answers += [(hand.flying.popleft(), _opened(c)) for c in contents if c]
            if is_over:
                self._replace(hand)
            elif contents:
                self._give(hand)
        self._deaths = 0 if answers else self._deaths
        return answers

    def _give(self, hand: _Hand) -> None:
        """Send a process its job, then a range, or two if more ranges wait than processes exist."""
        if hand.parcel:
            hand.send(hand.parcel)
            hand.parcel = b""
        most = IN_FLIGHT if len(self._waiting) > len(self._hands) else 1
        while self._waiting and len(hand.flying) < most:
            hand.flying.append(self._waiting.popleft())
            hand.send(pickle.dumps(hand.flying[-1]))

    def _replace(self, hand: _Hand) -> None:
        """Put the ranges of a dead process back into the queue, and start another process.

        Raises
        ------
        InputError
            If a worker that imports the user's script would start the run again.
        MachineError
            If several died and none answered, or a process exited by itself before it began.
        """
        self._hands.remove(hand)
        hand.line.close()
        self._deaths += 1
        began, code = not hand.parcel, hand.process.exitcode
        if code == UNGUARDED:
            raise InputError(
                "run: worker processes import your script again, and there it starts this run "
                "once more. Put the code that runs below the line if __name__ == '__main__':, or "
                "use workers=0."
            )
        if self._deaths >= MOST_DEATHS or not (began or (code or 0) < 0):
            raise MachineError(
                f"run: a worker process died before it could answer ({hand.end}). Its model or "
                "data may not be picklable, its memory ran out, or the script lacks the line if "
                "__name__ == '__main__':; committed units are kept. Run again, with a smaller "
                "--batch-size or fewer --workers, or use --workers 0."
            )
        spans = list(hand.flying)
        _log.warning(
            "a worker was lost (%s); its %d ranges are given to other workers", hand.end, len(spans)
        )
        self._waiting.extend(spans[:1])  # it may be what kills: others first
        self._waiting.extendleft(reversed(spans[1:]))
        for other in self._hands:
            if not (other.parcel or other.flying):
                self._give(other)
        if self._waiting:
            self.hire()

    def close(self) -> None:
        """Let each process finish its current range, then end."""
        for hand in self._hands:
            hand.line.close()
        for hand in self._hands:
            hand.process.join()
        self._hands.clear()


def _opened(content: bytes) -> Any:
    answer = pickle.loads(content)
    if isinstance(answer, WorkerFailure):
        raise answer.error()
    return answer


def _check_shared_memory(job: Job) -> None:
    """Raise if tensors exceed shared memory, since writing to full memory kills the process.

    Raises
    ------
    MachineError
        With what it takes, what there is, and how to get more.
    """
    here = [t.untyped_storage() for t in job.tensors() if t.device.type == "cpu"]
    alone = {part.data_ptr(): part.nbytes() for part in here if not part.is_shared()}
    needed = sum(alone.values())
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else math.inf
    if needed > free:
        raise MachineError(
            f"run: workers share the model, or the rows, in {SHARED_MEMORY}: {gib(needed)}, of "
            f"which {gib(int(free))} are free. Make it larger (docker run --shm-size), or use "
            "--workers 0."
        )


def _allow_open_files() -> None:
    """Raise this process's limit of open files to the system's maximum.

    Each tensor of a job, as of a model, is shared with workers as a file that stays open.
    """
    with suppress(ImportError, ValueError, OSError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def _sigint_held() -> Iterator[None]:
    """Block Ctrl-C while processes start; they inherit the block and ignore Ctrl-C."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # The first process starts the tracker too, which lets Ctrl-C through again before the fork.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _told_what_cannot_be_sent() -> Iterator[None]:
    """Raise an explanation if a process cannot be started because its job cannot be pickled.

    Raises
    ------
    InputError
        If the model or the data cannot be pickled.
    MachineError
        If the system allows no more open files.
    """
    try:
        yield
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(
            f"run: the model or the data cannot be sent to other processes: {error}. Give them as "
            "files, names or module-level classes, or use --workers 0."
        ) from error
    except (OSError, RuntimeError) as error:
        if "open files" not in str(error):
            raise
        raise MachineError(
            "run: workers share each tensor of a model as an open file, and the system allows "
            "no more open files. Raise the limit (ulimit -Hn), or use --workers 0."
        ) from error


class Parcel:
    """A job that is pickled while a process starts, and sent when the process asks for it.

    Only a process that is about to start inherits the files in which tensors are shared. But what
    is given to it at its start goes through a pipe that a killed process leaves full, and the
    driver would wait there for good. So it is given nothing but its line to the driver.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self.content = b""

    def __reduce__(self) -> tuple[type[bytes], tuple[()]]:
        self.content = bytes(ForkingPickler.dumps(self._job))
        return bytes, ()


def serve(line: Connection, _parcel: bytes) -> None:
    """Ask for the job, then answer each range, until the driver closes the connection.

    Answers use plain ``pickle``: the connection itself would send each tensor as an open file.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    if hasattr(os, "register_at_fork"):  # what a model or data set forks must not outlive the line
        os.register_at_fork(after_in_child=line.close)
    with suppress(EOFError, OSError):
        line.send_bytes(b"")
        job = _begun(line.recv_bytes())
        while True:
            start, stop = pickle.loads(line.recv_bytes())
            line.send_bytes(_answer(job, start, stop))


def _begun(content: bytes) -> Job | WorkerFailure:
    try:
        job: Job = pickle.loads(content)
        job.begin(readable=False)
    except Exception as error:  # told by the driver, which ends the run
        return WorkerFailure.of(error)
    return job


def _answer(job: Job | WorkerFailure, start: int, stop: int) -> bytes:
    if isinstance(job, WorkerFailure):
        return pickle.dumps(job)
    try:
        answer: Any = job.work(start, stop)
        return pickle.dumps(answer)
    except Exception as error:  # told by the driver, which ends the run
        return pickle.dumps(WorkerFailure.of(error))


def _end_with_the_driver() -> None:
    """End this process when its parent process ends, so that a killed driver leaves no workers."""
    driver = parent_process()
    if driver is not None:
        driver.join()
        os._exit(1)
