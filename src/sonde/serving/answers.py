"""Answers as JSON, with the fields that clients read."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sonde.core.finite import finite_json
from sonde.run.instruments.entries import Key
from sonde.serving.served import Answer


def answers_json(request: str, answers: Sequence[Answer], alpha: float) -> dict[str, Any]:
    """Return the answer to a request; the inputs keep the order of the request."""
    each = [_one(f"{request}-{i}", answer) for i, answer in enumerate(answers)]
    return {"id": request, "alarm_rate": alpha, "answers": each}


def _one(name: str, found: Answer) -> dict[str, Any]:
    if found.refusal is not None:
        return {"id": name, "error": found.refusal.sentence, "status": found.refusal.status}
    line = {"id": name, "answer": found.answer, "probability": found.probability}
    if found.cut is not None:
        line |= {"cut": True, "tokens_read": found.cut.n_read, "tokens_given": found.cut.n_given}
    if found.ignored:
        line["ignored"] = list(found.ignored)
    if found.columns is not None:
        line["columns"] = [finite_json(asdict(column)) for column in found.columns]
    verdict = found.verdict
    if verdict is None:
        return line
    by_detector: dict[str, dict[str, float | None]] = {}
    scores: dict[str, dict[str, float | None]] = {}
    for (method, site), (score, p) in verdict.each.items():
        by_detector.setdefault(method, {})[site] = p
        scores.setdefault(method, {})[site] = score if math.isfinite(score) else None
    return line | {
        "p": by_detector,
        "score": scores,
        "p_all": verdict.p,
        "alarm": verdict.alarm,
        "loudest": _place(verdict.loudest, found),
    }


def _place(key: Key | None, found: Answer) -> dict[str, Any] | None:
    if key is None or found.verdict is None:
        return None
    return {"detector": key[0], "site": key[1], "p": found.verdict.each[key][1]}
