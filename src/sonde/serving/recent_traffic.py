"""Data of the dashboard: the last minutes of traffic, as JSON values."""

import base64
import io
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from sonde.serving.served import Answer

SECONDS = 180
BINS = 20
RECENT = 2_000
MOST_ALARMS = 50
MOST_NAMED = 12
"""Places and columns that the dashboard names."""
COUNTED = ("requests", "failed", "alarms", "refused", "cut")
"""Counts of each second."""
SUMMED = ("recent", "recent_alarms", "inputs", "n_alarms")
MOST_TIMES = 500
"""Last latencies that each replica writes down for the others."""
MOST_TEXT, MOST_NUMBERS, THUMBNAIL = 500, 64, 96


class RecentTraffic:
    """Counts of the last minutes and of the last inputs, and the last alarms.

    Parameters
    ----------
    keep_inputs : int
        Inputs of the last alarms that are kept; 0 keeps none.
    """

    def __init__(self, keep_inputs: int) -> None:
        self._lock = threading.Lock()
        self._seconds: deque[dict[str, Any]] = deque(maxlen=SECONDS)
        self._times: deque[float] = deque(maxlen=RECENT)
        self._p: deque[float] = deque(maxlen=RECENT)
        self._loud: deque[str | None] = deque(maxlen=RECENT)
        self._unusual: deque[tuple[str, ...]] = deque(maxlen=RECENT)
        self._alarms: deque[dict[str, Any]] = deque(maxlen=MOST_ALARMS)
        self._sure: deque[float] = deque(maxlen=RECENT)
        self._keep, self._codes, self._refused = keep_inputs, Counter[str](), Counter[str]()
        self._wrong = Counter[str]()
        self.n_inputs = self.n_alarms = 0

    def request(self, route: str, code: int, seconds: float) -> None:
        """Record a request."""
        if route not in ("predict", "infer"):
            return
        with self._lock:
            second = self._second()
            second["requests"] += 1
            second["failed"] += code >= 400
            self._codes[str(code)] += 1
            self._times.append(seconds)

    def _second(self) -> dict[str, Any]:
        now = int(time.time())
        if not self._seconds or self._seconds[-1]["t"] != now:
            self._seconds.append({"t": now, **dict.fromkeys(COUNTED, 0)})
        return self._seconds[-1]

    def answers(self, names: Sequence[str], found: Sequence[Answer], inputs: Sequence[Any]) -> None:
        """Record the answers to a request's inputs; an answer may be a refusal."""
        with self._lock:
            for name, one, given in zip(names, found, inputs, strict=True):
                if one.refusal is not None:
                    self._second()["refused"] += 1
                    self._refused[str(one.refusal.status)] += 1
                    self._wrong.update([one.refusal.column] if one.refusal.column else [])
                else:
                    self._answer(name, one, given)

    def _answer(self, name: str, found: Answer, given: Any) -> None:
        self.n_inputs += 1
        if found.cut is not None:
            self._second()["cut"] += 1
        if found.probability is not None:
            self._sure.append(found.probability)
        verdict = found.verdict
        if verdict is None:
            return
        if verdict.p is not None:
            self._p.append(verdict.p)
        is_alarm = bool(verdict.alarm)
        place = None if verdict.loudest is None else " at ".join(verdict.loudest)
        self._loud.append(place if is_alarm else None)
        unusual = tuple(column.name for column in found.columns or () if is_alarm)
        self._unusual.append(unusual)
        if not is_alarm:
            return
        self.n_alarms += 1
        self._second()["alarms"] += 1
        line = {"id": name, "t": time.time(), "p": verdict.p, "loudest": place}
        line["columns"] = ", ".join(unusual)
        line["answer"] = None if found.answer is None else str(found.answer)[:80]
        if self._keep:
            line["input"] = shown(given)
            kept = [alarm for alarm in self._alarms if "input" in alarm]
            for old in kept[: max(0, len(kept) + 1 - self._keep)]:
                del old["input"]
        self._alarms.append(line)

    def counts(self) -> dict[str, Any]:
        """Return the counts of this replica as JSON values."""
        with self._lock:
            bins = [0] * BINS
            for p in self._p:
                bins[min(BINS - 1, int(p * BINS))] += 1
            return {
                "seconds": [dict(one) for one in self._seconds],
                "times": [round(x, 6) for x in [*self._times][-MOST_TIMES:]],
                "p": bins,
                "recent": len(self._loud),
                "recent_alarms": sum(place is not None for place in self._loud),
                "sites": Counter(place for place in self._loud if place),
                "columns": Counter(name for names in self._unusual for name in names),
                "wrong": dict(self._wrong),
                "alarms": list(self._alarms),
                "codes": dict(self._codes),
                "refused": dict(self._refused),
                "sure": [sum(self._sure), len(self._sure)],
                "inputs": self.n_inputs,
                "n_alarms": self.n_alarms,
            }


def state_of(replicas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the dashboard shows of the traffic of all replicas."""
    times = sorted(x for one in replicas for x in one["times"])
    every = [second for one in replicas for second in one["seconds"]]
    seconds = {t: dict.fromkeys(COUNTED, 0) for t in sorted({second["t"] for second in every})}
    for second in every:
        for name in COUNTED:
            seconds[second["t"]][name] += second[name]
    alarms = sorted((one for each in replicas for one in each["alarms"]), key=lambda one: -one["t"])
    sites, columns, wrong, codes, refused = (
        sum((Counter(one[name]) for one in replicas), Counter[str]())
        for name in ("sites", "columns", "wrong", "codes", "refused")
    )
    total, n_sure = (sum(one["sure"][i] for one in replicas) for i in range(2))
    return {
        "now": time.time(),
        "seconds": [{"t": t, **counts} for t, counts in seconds.items()][-SECONDS:],
        "latency": {str(q): _quantile(times, q) for q in (50, 90, 99)},
        "p": [sum(counts) for counts in zip(*(one["p"] for one in replicas), strict=True)],
        "sites": sites.most_common(MOST_NAMED),
        "columns": columns.most_common(MOST_NAMED),
        "wrong": wrong.most_common(MOST_NAMED),
        "alarms": alarms[:MOST_ALARMS],
        "codes": dict(codes),
        "refused": dict(refused),
        "confidence": total / n_sure if n_sure else None,
        "replicas": len(replicas),
        **{name: sum(one[name] for one in replicas) for name in SUMMED},
    }


def _quantile(ordered: Sequence[float], q: int) -> float | None:
    return ordered[min(len(ordered) - 1, len(ordered) * q // 100)] if ordered else None


def shown(given: Any) -> dict[str, str]:
    """Return an input for display: a short text, or a small image."""
    content = given
    if isinstance(given, dict) and isinstance(given.get("b64"), str):
        content = base64.b64decode(given["b64"])
    if isinstance(content, bytes):
        from PIL import Image

        image = Image.open(io.BytesIO(content))
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        box = io.BytesIO()
        image.convert("RGB").save(box, "PNG")
        return {"picture": base64.b64encode(box.getvalue()).decode()}
    if isinstance(given, list):
        given = ", ".join(f"{x:.4g}" for x in given[:MOST_NUMBERS] if isinstance(x, int | float))
    elif isinstance(given, dict):
        given = ", ".join(f"{name} {value}" for name, value in [*given.items()][:MOST_NUMBERS])
    return {"text": str(given)[:MOST_TEXT]}
