"""What came of one fault, and the table of all."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.faults.commands import Ended
from tools.faults.counting import Count, count, digest
from tools.faults.jobs import Job, Undisturbed

COLUMNS = (
    "fault", "in", "tried", "survived", "same bytes", "clear error", "rows lost",
    "rows counted twice",
)  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """What came of a fault.

    Parameters
    ----------
    fault, where : str
    count : Count
        Of the finished output, and of what was committed before the fault.
    same : bool
        The output has the bytes of the undisturbed one in the end.
    clear : bool
        A command ended with one line that says what is wrong.
    wrong : str
        What is not as it must be; empty where the fault was survived.
    seen : str
        What the fault met.
    unchecked : bool
        The format holds no checksum, so that damage may pass for a value.
    """

    fault: str
    where: str
    count: Count
    same: bool
    clear: bool
    wrong: str = ""
    seen: str = ""
    unchecked: bool = False

    @property
    def survived(self) -> bool:
        """Whether the output is right, or an error said why not and nothing was lost."""
        return not self.wrong and self.count == Count() and (self.same or self.clear)

    @property
    def is_fault_of_ours(self) -> bool:
        """Whether it was not survived though the format would have let it be noticed."""
        return not self.survived and (bool(self.wrong) or not self.unchecked)


def judged(
    fault: str, job: Job, folder: Path, whole: Undisturbed, ends: Sequence[Ended], seen: str = ""
) -> Trial:
    """Return a trial whose last command is to have finished the output."""
    output = folder / job.output
    same = output.exists() and digest(output) == whole.digest
    counted = Count() if same else count(output, whole.folder / job.output, job.n_rows)
    wrong = "" if same else f"other bytes ({ends[-1].said})"
    wrong = wrong or unclear(ends)
    clear = any(e.is_clear for e in ends)
    return Trial(fault, job.name, counted, same, clear, wrong, seen)


def unclear(ends: Iterable[Ended]) -> str:
    """Return how a command ended that neither did its work nor said clearly why not."""
    fine = [e.is_clear or (e.code in (0, 1) and "Traceback" not in e.err) for e in ends]
    return next((e.said for e, ok in zip(ends, fine, strict=True) if not ok), "")


def table(trials: Sequence[Trial]) -> str:
    """Return one line for each fault and job, as Markdown."""
    lines = [COLUMNS, tuple("---" if i < 2 else "---:" for i in range(len(COLUMNS)))]
    for fault, where in dict.fromkeys((t.fault, t.where) for t in trials):
        lines.append(
            _line(fault, where, [t for t in trials if (t.fault, t.where) == (fault, where)])
        )
    lines.append(_line("**all**", "", trials))
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def _line(fault: str, where: str, trials: Sequence[Trial]) -> tuple[str, ...]:
    figures = (
        len(trials),
        sum(t.survived for t in trials),
        sum(t.same for t in trials),
        sum(t.clear for t in trials),
        sum(t.count.lost for t in trials),
        sum(t.count.twice for t in trials),
    )
    return (fault, where, *(str(n) for n in figures))
