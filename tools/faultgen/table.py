"""The tables of drawn faults as Markdown: by task, by family, by kind."""

from collections.abc import Callable, Sequence
from typing import Any

from tools.faultgen.judging import ACCUSED, CLEAN, CRASHED, FOUND, LATE, MISSED, TRUE, WARNED, WRONG

Result = dict[str, Any]
COLUMNS = ("drawn", "named", "right", "equivalent", "wrong cause", "missed", "crash or no end")


def _row(*cells: Any) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"


def _share(some: int, n: int) -> str:
    return f"{some / n:.0%}" if n else ""


def _cells(results: Sequence[Result]) -> tuple[Any, ...]:
    n = len(results)
    count = lambda *v: sum(r["verdict"] in v for r in results)  # noqa: E731
    return (
        n, _share(count(*FOUND), n), count("right"), count("equivalent"),
        f"{count(WRONG)} ({_share(count(WRONG), n)})", count(MISSED), count(CRASHED, LATE),
    )  # fmt: skip


def grouped(results: Sequence[Result], head: str, key: Callable[[Result], str]) -> str:
    """Return a table with a row for each value of `key`, and one of all."""
    lines = [_row(head, *COLUMNS), _row(*["---"] * (1 + len(COLUMNS)))]
    for value in sorted({key(r) for r in results}):
        lines.append(_row(value, *_cells([r for r in results if key(r) == value])))
    return "\n".join([*lines, _row("**all**", *_cells(results))])


def compared(before: Sequence[Result], after: Sequence[Result]) -> str:
    """Return what two commits name of the same draws, by task."""
    old = {r["seed"]: r for r in before}
    both = [(old[r["seed"]], r) for r in after if r["seed"] in old]
    said = [" and ".join(sorted({r.get("commit", "") for r in side})) for side in (before, after)]
    head = ("drawn", f"named at {said[0]}", f"named at {said[1]}", "wrong before", "wrong cause")
    lines = [_row("task", *head), _row(*["---"] * 6)]
    for task in [*sorted({b["task"] for _, b in both}), ""]:
        pairs = [(a, b) for a, b in both if task in (b["task"], "")]
        n = len(pairs)
        named = [_share(sum(r[i]["verdict"] in FOUND for r in pairs), n) for i in (0, 1)]
        wrong = [sum(r[i]["verdict"] == WRONG for r in pairs) for i in (0, 1)]
        lines.append(_row(task or "**all**", n, *named, *wrong))
    return "\n".join(lines)


def operator_of(kind: str) -> str:
    """Return a kind without its part and rows: what is changed, and how."""
    parts = kind.split(".")
    return f"{parts[0]}: {parts[2] if len(parts) == 4 else parts[1]}"


def summary(results: Sequence[Result]) -> str:
    """Return one sentence: how many draws at which commits, what was named and what was wrong."""
    n, at = len(results), ", ".join(sorted({r.get("commit", "") for r in results}))
    named, wrong = (sum(r["verdict"] in v for r in results) for v in (FOUND, (WRONG,)))
    return (
        f"{n} draws at {at}: {_share(named, n)} named, {wrong} wrong causes ({_share(wrong, n)})."
    )


def faults(results: Sequence[Result], *, kinds: bool = True) -> str:
    """Return the tables of faults.

    Parameters
    ----------
    results : sequence of dict
    kinds : bool, default=True
        Whether kinds are told apart; not for closed ones.
    """
    regress = ("number", "numbers")
    parts = [
        grouped(results, "answers", lambda r: "numbers" if r["answers"] in regress else "classes"),
        grouped(results, "inputs", lambda r: "one" if r["inputs"] == 1 else "several"),
        grouped(results, "task", lambda r: r["task"]),
        grouped(results, "family", lambda r: r["family"]),
    ]
    if kinds:
        parts += [
            grouped(results, "what is changed", lambda r: r["group"]),
            grouped(results, "fault", lambda r: operator_of(r["kind"])),
        ]
    return "\n\n".join(parts)


def healthy(results: Sequence[Result]) -> str:
    """Return the table of worlds without a fault, with the codes of true and false warnings."""
    n = len(results)
    count = lambda *v: sum(r["verdict"] in v for r in results)  # noqa: E731
    codes: dict[bool, dict[str, int]] = {True: {}, False: {}}
    for result in results:
        loud = {text.split(":")[0] for text in result.get("loud", ())}
        for code in loud:
            is_true = code not in result.get("false", loud)
            codes[is_true][code] = codes[is_true].get(code, 0) + 1
    told = [", ".join(f"{c} {k}" for c, k in sorted(codes[x].items(), key=lambda p: -p[1]))
            for x in (True, False)]  # fmt: skip
    head = ("clean", "true warnings alone", "a false warning", "a cause", "crash or no end")
    lines = [
        _row("healthy worlds", *head, "codes of true warnings", "codes of false warnings"),
        _row(*["---"] * 8),
        _row(n, count(CLEAN), count(TRUE), f"{count(WARNED)} ({_share(count(WARNED), n)})",
             count(ACCUSED), count(CRASHED, LATE), *told),
    ]  # fmt: skip
    return "\n".join(lines)


def page(before: str, texts: Sequence[str], part: str) -> str:
    """Return a page whose generated part, of open or of closed kinds, is renewed."""
    start, end = f"<!-- printed: {part} kinds -->", f"<!-- end of {part} kinds -->"
    head, _, rest = before.partition(start)
    return "\n\n".join([head + start, *texts, end]) + rest.partition(end)[2]
