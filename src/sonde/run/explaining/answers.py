"""Answers of a model to the explained inputs, with and without the strongest positions."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from sonde.core.inputs import InputBatch, Model
from sonde.data.pieces import texts_of
from sonde.explain import Baseline, Objective
from sonde.explain._places import ExamplePlaces
from sonde.run.explaining.choosing import one_number
from sonde.run.explaining.judged import Judged
from sonde.run.reading.class_order import class_logits
from sonde.tap.model.probe import find_logits
from sonde.tap.streams.site_function import SiteFunction

STRONGEST: Final = 0.1


def answers_of(
    model: Model,
    batch: InputBatch,
    best: Judged | None,
    site: str,
    classes: Mapping[str, str],
    targets: Sequence[float] = (),
    baseline: Baseline | None = None,
) -> list[dict[str, Any]]:
    """Return true class, answer and confidence of each input; empty if the model gives no answers.

    With a believable attribution (``best``) also its strongest tenth of the places, and the answer
    if the baseline replaces these places. Answers are names of classes, the numbers of a regression
    (``targets`` are its truths), or the token with which a language model goes on.
    """
    tokens = SiteFunction(model, batch, site) if model.task == "causal" else None
    logits = class_logits(model, batch) if tokens is None else None
    numbers = one_number(model, batch) if tokens is None and logits is None else None
    if tokens is not None:
        next_one = Objective("prob").at(tokens)
        sure = next_one.of(tokens.outputs).tolist()
        answered: list[tuple[Any, ...]] = [
            (None, _token_text(model, token), p)
            for token, p in zip(next_one.target.tolist(), sure, strict=True)
        ]
    elif numbers is not None:
        truths = [t if t == t else None for t in targets] or [None] * len(numbers)
        answered = [
            (truth, names, None) for truth, names in zip(truths, numbers.tolist(), strict=True)
        ]
    elif logits is not None:
        sure, answer = logits.double().softmax(1).max(1)
        labels = [_named(t, classes) if t >= 0 and classes else None for t in batch.label.tolist()]
        names = [_named(k, classes) for k in answer.tolist()]
        answered = list(zip(labels, names, sure.tolist(), strict=True))
    else:
        return []
    verb = {} if tokens is None else {"verb": "goes on with"}
    lines: list[dict[str, Any]] = [
        {"truth": truth, "answer": names, "confidence": sure, "strongest": [], "without": None}
        | verb
        for truth, names, sure in answered
    ]
    if best is None:
        return lines
    function = tokens or SiteFunction(model, batch, site)
    places = ExamplePlaces.of(function, baseline or Baseline())
    order = places.order(places.scores(best.found), 0)
    n_gone = (STRONGEST * places.real.sum(1)).round().clamp(min=1).long()
    gone = order.argsort(1) < n_gone[:, None]
    with torch.no_grad():
        outputs = function.run(places.without(gone))
    rest = find_logits(outputs)
    if tokens is not None:
        fed, mask = function.call.fed, function.call.mask
        rest = Objective().fixed(outputs, fed, mask).target
    if rest is None or (rest.ndim != 2 and tokens is None and numbers is None):
        return lines
    for i, one in enumerate(lines):
        one["strongest"] = order[i, : int(n_gone[i])].tolist()
        if tokens is not None:
            one["without"] = _token_text(model, int(rest[i]))
        elif numbers is not None:
            one["without"] = f"{float(rest[i]):.4g}"
        else:
            one["without"] = _named(int(rest[i].argmax()), classes)
    return lines


def _token_text(model: Model, token: int) -> str:
    return repr(texts_of([token], model.processor)[0])


def _named(number: int, classes: Mapping[str, str]) -> str:
    return classes.get(str(number), str(number))
