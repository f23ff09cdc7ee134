"""Ours against somebody else's, in one process."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from benchmarks.protocol import AGAIN, PLAIN, Ratio, interleaved, ratio_of

PATIENCE_SECONDS = 60.0
FEW = 3


def against(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Return our time over theirs; a peer that is very slow runs once."""
    ours()
    began = time.process_time()
    theirs()
    first = time.process_time() - began
    if first > PATIENCE_SECONDS:
        few = interleaved({"ours": ours}, FEW, warm_ups=0)["ours"]
        ratio = Ratio(statistics.median(few) / first, 0.0, 1.0, 1.0, 1)
        return asdict(ratio) | {"ours": statistics.median(few), "theirs": first}
    arms = {PLAIN: theirs, "ours": ours, AGAIN: theirs}
    taken = interleaved(arms, rounds, warm_ups=0)
    middle = {name: statistics.median(seconds) for name, seconds in taken.items()}
    return asdict(ratio_of(taken, "ours")) | {"ours": middle["ours"], "theirs": middle[PLAIN]}


def seconds_note(found: dict[str, Any]) -> str:
    """Return both times, and how far the peer's repeated arm strayed."""
    text = f"{found['ours']:.3f} s against {found['theirs']:.3f} s"
    if found["rounds"] == 1:
        return f"{text}, one round of the peer"
    return f"{text}, peer again {found['low']:.3f}-{found['high']:.3f}"
