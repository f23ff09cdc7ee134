"""The tables: what came of each command, and why something was refused."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from tools.fuzz.comparing import EQUAL, UNKNOWN, VERDICTS, Outcome

MOST = 150


def table(outcomes: Sequence[Outcome]) -> str:
    """Return how often each command ended how, as Markdown."""
    counts = Counter((o.command, o.verdict) for o in outcomes)
    commands = dict.fromkeys(o.command for o in outcomes)
    lines = [[c, *(str(counts[c, v]) for v in VERDICTS)] for c in commands]
    totals = Counter(o.verdict for o in outcomes)
    lines.append(["**all**", *(str(totals[v]) for v in VERDICTS)])
    return _markdown(("command", *VERDICTS), lines)


def reasons(outcomes: Iterable[Outcome]) -> str:
    """Return the reasons of all that is not equal, most frequent first, with one model each."""
    first: dict[tuple[str, str], int] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for o in outcomes:
        if o.verdict not in (EQUAL, UNKNOWN):
            key = o.verdict, _general(o.why)
            counts[key] += 1
            first.setdefault(key, o.number)
    lines = [
        [verdict, str(n), str(first[verdict, why]), why]
        for (verdict, why), n in counts.most_common()
    ]
    return _markdown(("verdict", "times", "model", "said"), lines)


def _general(why: str) -> str:
    """Return a line without what is of one model alone."""
    why = re.sub(r"\b(m\d+(\.\w+)*)(@\w+)?(:\w+(\.\w+)?)?", "SITE", why)
    why = re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", "N", why)
    why = re.sub(r"\bm?N(, N)+", "N", why)
    return why[:MOST].replace("|", "/")


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    every = [head, ["---"] * len(head), *lines]
    widths = [max(len(line[i]) for line in every) for i in range(len(head))]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in every
    )
