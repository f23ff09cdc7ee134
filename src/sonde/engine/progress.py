"""Progress on stderr, with rate, remaining time and memory, after two seconds."""

import math
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from sonde.core.random_state import kept_random_state
from sonde.core.wording import gib, plural

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

T = TypeVar("T")
LONG_SECONDS = 20.0
LEAST_STEPS = 4


def duration(seconds: float) -> str:
    """Return seconds as a short text in seconds, minutes or hours.

    Examples
    --------
    >>> duration(42), duration(600), duration(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def peak_memory_bytes() -> int:
    """Return the peak memory of this process in bytes; 0 if unknown."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Bar:
    """A progress bar that appears after two seconds, and disappears at the end.

    Parameters
    ----------
    label : str
        What is being done.
    total : int
        Number of examples, or of what ``of`` names.
    shown : bool, default=True
        False keeps silent; so does a stderr that is no terminal.
    delay_seconds : float, default=2.0
    state_bytes : int, default=0
        Memory of the states, for the estimate.
    keeps : bool, default=False
        Whether Ctrl-C keeps the finished work, so that the same run can go on from there.
    of : str, default="example"
        What is counted.
    budget_seconds : float, default=inf
        When the run ends, whatever is done by then.

    A long run prints one early line with its expected time and memory, also if stderr is no
    terminal. The time follows the later half of the steps, since the first steps also warm up.
    """

    def __init__(
        self,
        label: str,
        total: int,
        shown: bool = True,
        delay_seconds: float = 2.0,
        state_bytes: int = 0,
        keeps: bool = False,
        of: str = "example",
        budget_seconds: float = math.inf,
    ) -> None:
        self._label, self._total, self._delay, self._of = label, total, delay_seconds, of
        self._speaks, self._state_bytes, self._keeps = shown, state_bytes, keeps
        self._budget = budget_seconds
        self._shown = shown and sys.stderr.isatty()
        self._began = time.monotonic()
        self._done, self._said = 0, False
        self._steps: list[tuple[float, int]] = []
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> "Bar":
        self._began = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    @property
    def done(self) -> int:
        """Number of examples done."""
        return self._done

    @property
    def wall_seconds(self) -> float:
        """Seconds since the bar was entered."""
        return time.monotonic() - self._began

    def _seconds_left(self) -> float:
        """Return the estimated remaining seconds, from the rate of the later half of the steps.

        0 if the steps are few and short: the first step also warms up.
        """
        n = len(self._steps)
        (began, before), (now, done) = self._steps[(n - 1) // 2], self._steps[-1]
        if n < LEAST_STEPS and (n < LEAST_STEPS - 1 or now - began < LONG_SECONDS):
            return 0.0
        left = (now - began) / (done - before) * (self._total - done)
        return min(left, self._budget - now)

    def _say_estimate(self) -> None:
        """Print an estimate of the remaining time once, if the time is long."""
        left = self._seconds_left()
        if left > LONG_SECONDS:
            self._said = True
            memory = f", states take {gib(self._state_bytes)}" if self._state_bytes else ""
            sys.stderr.write(
                f"{self._label}: about {duration(left)} more for {plural(self._total, self._of)}"
                f"{memory}{'; Ctrl-C keeps what is done' if self._keeps else ''}.\n"
            )

    def advance(self, n: int) -> None:
        """Report ``n`` more examples as done."""
        self._done += n
        if self._speaks and not self._said and n:
            self._steps.append((self.wall_seconds, self._done))
            self._say_estimate()
        if not self._shown or self.wall_seconds < self._delay:
            return
        if self._progress is None:
            self._progress = _drawn()
            self._progress.start()
            self._task = self._progress.add_task(self._label, total=self._total, rate="", memory="")
        assert self._task is not None
        self._progress.update(
            self._task,
            completed=self._done,
            rate=f"{self._done / self.wall_seconds:.0f}/s",
            memory=f"{peak_memory_bytes() / 2**20:.0f} MiB",
        )


class Working:
    """A line with the seconds that one piece of work has taken, shown after two seconds.

    For work that cannot say how far it is. Silent where stderr is no terminal.

    Parameters
    ----------
    label : str
        What is being done.
    delay_seconds : float, default=2.0
        Seconds before the line appears.
    """

    def __init__(self, label: str, delay_seconds: float = 2.0) -> None:
        self._label, self._delay = label, delay_seconds
        self._progress: Progress | None = None
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "Working":
        if sys.stderr.isatty():
            self._progress = _spinner()
            self._progress.add_task(self._label, total=None)
            self._timer = threading.Timer(self._delay, self._progress.start)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None and self._progress is not None:
            self._timer.cancel()
            self._timer.join()
            self._progress.stop()


def _spinner() -> "Progress":
    """Return a line of rich that turns; made before the work, whose random numbers it keeps."""
    with kept_random_state():
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    return Progress(*columns, console=Console(stderr=True), transient=True)


def callback_of(progress: bool | Callable[[T], None] | None) -> Callable[[T], None]:
    """Return the function in a ``progress`` parameter; a flag gives one that does nothing."""
    return progress if callable(progress) else lambda _: None


def _drawn() -> "Progress":
    """Return a progress bar of rich."""
    with kept_random_state():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[memory]}"),
        console=Console(stderr=True),
        transient=True,
    )
