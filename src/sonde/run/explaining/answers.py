"""What a classifier answers to explained inputs, and what it says without the strongest places."""

from collections.abc import Mapping
from typing import Any, Final

import torch

from sonde.core.inputs import InputBatch, Model
from sonde.explain import Baseline
from sonde.explain._places import ExamplePlaces
from sonde.run.explaining.choosing import class_logits
from sonde.run.explaining.judged import Judged
from sonde.tap.model.probe import find_logits
from sonde.tap.reading.site_function import SiteFunction

STRONGEST: Final = 0.1


def answers_of(
    model: Model, batch: InputBatch, best: Judged | None, site: str, classes: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return truth, answer and confidence of each input; empty where the model is no classifier.

    With an attribution that can be believed also its strongest tenth of the places, and the answer
    without them: with the baseline in their stead.
    """
    logits = class_logits(model, batch)
    if logits is None:
        return []

    def named(number: int) -> str:
        return classes.get(str(number), str(number))

    sure, answer = logits.double().softmax(1).max(1)
    found: list[dict[str, Any]] = [
        {
            "truth": named(truth) if truth >= 0 and classes else None,
            "answer": named(said),
            "confidence": confidence,
            "strongest": [],
            "without": None,
        }
        for truth, said, confidence in zip(
            batch.label.tolist(), answer.tolist(), sure.tolist(), strict=True
        )
    ]
    if best is None:
        return found
    function = SiteFunction(model, batch, site)
    places = ExamplePlaces.of(function, Baseline())
    order = places.order(places.scores(best.found), 0)
    n_gone = (STRONGEST * places.real.sum(1)).round().clamp(min=1).long()
    gone = order.argsort(1) < n_gone[:, None]
    with torch.no_grad():
        rest = find_logits(function.run(places.without(gone)))
    if rest is None or rest.ndim != 2:
        return found
    for i, one in enumerate(found):
        one["strongest"] = order[i, : int(n_gone[i])].tolist()
        one["without"] = named(int(rest[i].argmax()))
    return found
