"""Work through a plan on the ranks of ``torch.distributed``: rank 0 assigns ranges and writes.

Every rank makes the same call. Ranks with a whole model take ranges in turn; ranks that hold parts
of one model compute each range together, and its rows count once. All get the folded states.
"""

import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed

from sonde.core.errors import InputError, MachineError, SondeError
from sonde.core.stream import Stream
from sonde.engine.derived import innermost
from sonde.run.passes._actors import WorkerFailure
from sonde.run.passes.job import Job, Span
from sonde.run.passes.threads import using_threads
from sonde.tap import LiveStream
from sonde.tap.hooks.sharding import is_sharded


@dataclass(frozen=True)
class Order:
    """What rank 0 tells the others: a range to work on, the end, or why the run stops."""

    span: Span | None = None
    outcome: Any = None
    reason: str = ""


@dataclass
class Ranks:
    """The ranks of a process group, as one of them sees them.

    Parameters
    ----------
    group : ProcessGroup
    word : str, default="fit"
        What the ranks do, for messages.
    """

    group: Any
    word: str = "fit"
    _busy: list[int] = field(default_factory=list[int])
    _failed: str = ""

    @property
    def rank(self) -> int:
        """Number of this rank in the group."""
        return distributed.get_rank(self.group)

    @property
    def n_ranks(self) -> int:
        """Number of ranks in the group."""
        return distributed.get_world_size(self.group)

    def shared(self, job: Job, plan: str, run: Callable[[], Any]) -> Any:
        """Return on every rank what ``run`` returns on rank 0, while the others work for it.

        Parameters
        ----------
        job : Job
            The work on one range, on this rank.
        plan : str
            Identity of the plan, which has to be the same on all ranks.
        run : callable
            Called on rank 0; hands out its ranges by ``hand_out``.

        Raises
        ------
        InputError
            If ranks have different plans.
        MachineError
            Naming a rank that ended or failed.
        """
        if self.rank:
            self._send(0, plan)
            return self._serve(job)
        try:
            self._require_same(plan)
            outcome = run()
        except BaseException as error:
            lost = self._drained()
            self._tell(Order(reason=lost or self._reason_of(error)))
            if lost and isinstance(error, Exception) and not isinstance(error, SondeError):
                raise MachineError(f"{self.word}: {lost}") from error
            raise
        self._tell(Order(outcome=outcome))
        return outcome

    def hand_out(self, job: Job, spans: Sequence[Span]) -> Generator[tuple[Span, Any]]:
        """Yield each range with its result, in order; called on rank 0."""
        together = is_shared_model(job.stream)
        size = 1 if together else self.n_ranks
        for start in range(0, len(spans), size):
            several = spans[start : start + size]
            others = range(1, self.n_ranks if together else len(several))
            for rank in others:
                self._send(rank, Order(span=several[0 if together else rank]))
                self._busy.append(rank)
            with using_threads(job.threads):
                answers = [job.work(*several[0])]
            for rank in others:
                answer = self._answer(rank)
                answers += [] if together else [answer]
            yield from zip(several, answers, strict=True)

    def _serve(self, job: Job) -> Any:
        """Work on the ranges that rank 0 names, and return the outcome of all."""
        together = is_shared_model(job.stream)
        while True:
            order: Order = self._received(0)
            if order.reason:
                raise MachineError(f"{self.word}: {order.reason}")
            if order.span is None:
                return order.outcome
            try:
                with using_threads(job.threads):
                    answer: Any = job.work(*order.span)
            except Exception as error:  # raised on rank 0, which ends all
                if together:
                    raise  # rank 0 waits in the same forward pass until this rank has ended
                answer = WorkerFailure.of(error)
            self._send(0, None if together else answer)

    def _answer(self, rank: int) -> Any:
        self._busy.remove(rank)
        answer = self._received(rank)
        if isinstance(answer, WorkerFailure):
            self._failed = f"rank {rank} on {answer.where}"
            error = answer.error()
            error.add_note(f"on rank {rank}")
            raise error
        return answer

    def _require_same(self, plan: str) -> None:
        other = [rank for rank in range(1, self.n_ranks) if self._received(rank) != plan]
        if other:
            raise InputError(
                f"{self.word}: expected the same data, sites, methods and threads on all ranks, "
                f"got others on rank {other[0]} than on rank 0. With group= every rank makes the "
                "same call, with all of the data: the ranges of rows are shared out here."
            )

    def _reason_of(self, error: BaseException) -> str:
        """Return why a run stops, for the other ranks."""
        if isinstance(error, MachineError):
            return str(error).removeprefix(f"{self.word}: ")
        where = self._failed or f"rank 0 on {socket.gethostname()}"
        return f"{where} stopped: {type(error).__name__}: {error}"

    def _drained(self) -> str:
        """Take the answers that are on their way; return what is said of ranks that ended."""
        lost: list[str] = []
        while self._busy:
            try:
                self._received(self._busy.pop())
            except MachineError as error:
                lost.append(str(error).removeprefix(f"{self.word}: "))
        return lost[0] if lost else ""

    def _tell(self, order: Order) -> None:
        for rank in range(1, self.n_ranks):
            with suppress(MachineError):  # a rank that ended
                self._send(rank, order)

    def _send(self, rank: int, content: Any) -> None:
        """Send an object to a rank of this run."""
        to = distributed.get_global_rank(self.group, rank)
        try:
            distributed.send_object_list([content], to, self.group, self._device)
        except RuntimeError as error:
            raise self._lost(rank, error) from error

    def _received(self, rank: int) -> Any:
        """Return an object that a rank of this run sends.

        Raises
        ------
        MachineError
            If the rank ended.
        """
        source = distributed.get_global_rank(self.group, rank)
        content: list[Any] = [None]
        try:
            distributed.recv_object_list(content, source, self.group, self._device)
        except RuntimeError as error:
            raise self._lost(rank, error) from error
        return content[0]

    def _lost(self, rank: int, error: RuntimeError) -> MachineError:
        return MachineError(
            f"{self.word}: rank {rank} of {self.n_ranks} ended or did not answer in time "
            f"({' '.join(str(error).split())[:80]}). Its own output says why; committed units are "
            "kept in the run directory."
        )

    @property
    def _device(self) -> torch.device:
        """Device of the tensors that the group sends."""
        on_gpu = "nccl" in str(distributed.get_backend(self.group))
        return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def is_shared_model(stream: Stream) -> bool:
    """Return whether ranks hold parts of the model that a stream reads."""
    live = innermost(stream)
    return isinstance(live, LiveStream) and is_sharded(live.model.module)
