"""Compute several attributions of the same answers, test each, and say which can be believed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from sonde.core.errors import InputError, SondeError, near
from sonde.core.finite import finite_json
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.engine.progress import Bar
from sonde.explain import (
    Attribution,
    Attributor,
    Baseline,
    Deletion,
    FaithfulnessViolation,
    GradTimesInput,
    Insertion,
    IntegratedGradients,
    Objective,
    Saliency,
    SanityChecks,
    SmoothGrad,
)
from sonde.run.explaining.judged import Judged
from sonde.run.explaining.kept import KeptExplanations
from sonde.run.instruments.families import snake_case
from sonde.tap.streams.site_function import SiteFunction

SCHEMA: Final = "sonde-explain/1"
STEPS: Final = 4
"""Steps of the progress of one method: the explanation, two curves, and the other tests."""
DEFAULTS: tuple[Attributor, ...] = (
    GradTimesInput(),
    Saliency(),
    SmoothGrad(),
    IntegratedGradients(),
)
"""The cheapest first: a budget of time ends with those that are ready."""


Ready = Callable[[InputBatch, str, Attribution], None]
Refused = Callable[[str, SondeError], None]


class _OutOfTime(Exception):
    """The time limit for explanations ended between two tests."""


def find_attributor(word: str) -> type[Attributor]:
    """Return the class of an attribution by its word; raise with similar words if it is unknown."""
    import sonde.explain as family

    members = (getattr(family, name) for name in family.__all__)
    kinds = {
        snake_case(m.__name__): m
        for m in members
        if isinstance(m, type) and issubclass(m, Attributor) and m is not Attributor
    }
    if word not in kinds:
        raise InputError(
            f"no attribution is called {word!r}.{near(word, kinds)} There are "
            f"{', '.join(sorted(kinds))}."
        )
    return kinds[word]


def name_of(method: Attributor) -> str:
    """Return a method's word, with the parameters that differ from their defaults.

    Examples
    --------
    >>> name_of(IntegratedGradients(steps=20))
    'integrated_gradients(steps=20)'
    """
    plain = (int, float, str, bool)
    typed = [
        f"{f.name}={value!r}"
        for f in fields(method)  # type: ignore[arg-type]
        if isinstance(value := getattr(method, f.name), plain) and value != f.default
    ]
    word = snake_case(type(method).__name__)
    return f"{word}({','.join(typed)})" if typed else word


def explain(
    model: Model,
    inputs: Inputs,
    methods: Sequence[Attributor] = DEFAULTS,
    objective: Objective | None = None,
    site: str = "input",
    *,
    n_random: int = 5,
    progress: bool = True,
    directory: Path | None = None,
    baseline: Baseline | None = None,
    seconds: float = math.inf,
    ready: Ready | None = None,
    refused: Refused | None = None,
) -> tuple[InputBatch, list[Judged]]:
    """Return the first batch of inputs and the attributions of its answers, each tested.

    Methods are run in the order given until the time is spent; the first is run in any case. A
    further one is left out if its tests do not end in time.

    Parameters
    ----------
    model : Model
    inputs : Inputs
        Only the first batch is explained.
    methods : sequence of Attributor
    objective : Objective, optional
        By default the logit of the predicted class or token. Tests use its probability.
    site : str, default="input"
    n_random : int, default=5
        Number of random orders of the places to compare each attribution's order with.
    progress : bool, default=True
    directory : Path or None, default=None
        Where each method is kept once it is judged: the same call goes on from there.
    baseline : Baseline, optional
        What replaces places that are taken away, in tests and in methods without a baseline of
        their own.
    seconds : float, default=inf
        A further method starts only if it is likely to end, with its tests, within this time, and
        stops between its tests when the time is over.
    ready : callable, optional
        Called with the inputs and each attribution as soon as it is there, before its tests.
    refused : callable, optional
        Called with a method that does not fit the model, and its error; the other methods run.

    Raises
    ------
    InputError
        If there is no input or no method.
    SondeError
        If no method fits the model: the error of the first one. Without ``refused``, if one
        method does not fit.
    """
    batch = next(iter(inputs.batches(0, len(inputs))), None)
    if batch is None or not methods:
        raise InputError("explain: expected at least one input and one method, got none.")
    objective, usual = objective or Objective(), baseline or Baseline()
    test = objective if objective.kind == "answer" else Objective("prob", objective.target)
    kept = KeptExplanations.of(directory, model, batch, objective, site, n_random)
    judged: list[Judged] = []
    errors: list[SondeError] = []
    keeps, n_steps = directory is not None, STEPS * len(methods)
    with Bar(
        "explain", n_steps, shown=progress, of="step", keeps=keeps, budget_seconds=seconds
    ) as bar:
        for done, method in enumerate(methods):
            if judged and bar.wall_seconds * (done + 1) / done > seconds:
                break
            based, own = _with_baseline(method, usual)

            def step() -> None:
                bar.advance(1)
                if judged and bar.wall_seconds > seconds:
                    raise _OutOfTime

            judge = partial(_judged, model, batch, based, objective, test, site, n_random, own)
            try:
                judged.append(kept.judged(based, partial(judge, step, ready)))
            except _OutOfTime:
                break
            except SondeError as error:
                if refused is None:
                    raise
                errors.append(error)
                refused(name_of(method), error)
            bar.advance(STEPS * (done + 1) - bar.done)
    if not judged and errors:
        raise errors[0]
    return batch, judged


def _with_baseline(method: Attributor, usual: Baseline) -> tuple[Attributor, Baseline]:
    """Return a method and its baseline: the method's own baseline, or the default."""
    own = getattr(method, "baseline", None)
    if own is None:
        return method, usual
    return (replace(method, baseline=usual), usual) if own.kind == "auto" else (method, own)  # type: ignore[call-arg]


def _judged(
    model: Model,
    batch: InputBatch,
    method: Attributor,
    objective: Objective,
    test: Objective,
    site: str,
    n_random: int,
    baseline: Baseline,
    step: Callable[[], None],
    ready: Ready | None,
) -> Judged:
    explained = method.explain(model, batch, objective=objective, site=site)
    if ready is not None:
        ready(batch, name_of(method), explained)
    step()
    curves: list[dict[str, Any]] = []
    gains: list[Tensor] = []
    for kind in (Deletion, Insertion):
        result = kind(baseline, n_random).judge(model, batch, explained, objective=test, site=site)
        null = float("nan") if result.null is None else float(torch.as_tensor(result.null))
        spread = {"random": null, "random_spread": result.null_spread}
        curves.append({"value": float(result), "se": result.se, **spread})
        gains.append(torch.cat([result.each[None], result.null_each]))
        step()
        worth = result.change
    signs = FaithfulnessViolation(baseline=baseline).judge(
        model, batch, explained, objective=_unsaturated(model, batch, test, site), site=site
    )
    violation = {
        "value": float(signs),
        "low": signs.low,
        "high": signs.high,
        "base_rate": signs.base_rate,
        "signed": explained.signed,
    }
    redrawn = SanityChecks(stages=1).judge(model, batch, method, objective=objective, site=site)
    sanity = {"value": float(redrawn), "se": redrawn.se, "passed": redrawn.is_passed}
    own, *orders = gains[1] - gains[0]
    by_chance = torch.stack(orders) if orders else own[None]
    inputs = {
        "gain": (own - by_chance.mean(0)).tolist(),
        "chance": (by_chance - by_chance.mean(0)).mean(1).tolist(),
        "worth": worth.tolist(),
        "wrong": [None if v != v else v for v in signs.wrong.tolist()],
        "label": _labels(model, batch, test, site),
    }
    return Judged(name_of(method), explained, curves[0], curves[1], violation, sanity, inputs)


def _unsaturated(model: Model, batch: InputBatch, test: Objective, site: str) -> Objective:
    """Use the margin for a probability: removing one position rarely changes a probability of 1."""
    is_share = test.at(SiteFunction(model, batch, site)).objective.kind == "prob"
    return replace(test, kind="margin") if is_share else test


def _labels(model: Model, batch: InputBatch, test: Objective, site: str) -> list[str]:
    """Return the class or the tokens whose answer is explained, for each input."""
    function = SiteFunction(model, batch, site)
    target = test.at(function).target
    return [" ".join(map(str, row)) for row in target.reshape(len(target), -1).tolist()]


def best_of(judged: Sequence[Judged]) -> Judged | None:
    """Return the believable attribution of the largest effect, or None.

    Attributions that can be believed on all inputs go before those that hold on a class alone.
    """
    believable = [one for one in judged if one.is_believable]
    return max(
        believable, key=lambda one: (one.verdicts[0].is_believable, one.effect), default=None
    )


def leading(judged: Sequence[Judged]) -> Judged | None:
    """Return the attribution to show: the best by ``best_of``, else the largest open, else None.

    Open: every input supports the attribution, but there are too few inputs to believe it.
    """
    open_ones = [one for one in judged if one.best.is_open]
    return best_of(judged) or max(open_ones, key=lambda one: one.effect, default=None)


def rivals(judged: Sequence[Judged], best: Judged) -> tuple[list[Judged], list[Judged]]:
    """Return the attributions as good as the best within error, and those with a larger effect.

    Effects are compared input by input, at 95 %, on the inputs on which the best is believed. One
    with a larger effect was not believed, since its signs are wrong.
    """
    leads = [(one, best.lead(one, best.best.label)) for one in judged if one is not best]
    equal = [one for one, (low, high) in leads if one.is_believable and low <= 0 <= high]
    return equal, [one for one, (_, high) in leads if high < 0]


def explain_document(
    judged: Sequence[Judged],
    batch: InputBatch,
    *,
    model: str,
    data: str,
    most: int = 16,
    features: Sequence[str] = (),
    classes: Mapping[str, str] | None = None,
    answers: Sequence[Mapping[str, Any]] = (),
    where: Sequence[str] = (),
    baseline: Baseline | None = None,
    not_run: Sequence[str] = (),
    refused: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the JSON of an explanation, ``sonde-explain/1``.

    Parameters
    ----------
    judged : sequence of Judged
    batch : InputBatch
    model, data : str
        As the user typed them.
    most : int, default=16
        How many examples carry their attributions.
    features : sequence of str, optional
        Names of the input's numbers, where they have some.
    classes : mapping of str to str, optional
        Names of the classes or tokens that are explained, by number.
    answers : sequence of mapping, optional
        The model's answer to each example, from ``answers_of``.
    where : sequence of str, optional
        Where each example stands in the user's files.
    baseline : Baseline, optional
        What replaced places that were taken away, if it was chosen for these data.
    not_run : sequence of str, optional
        Methods for which no time was left.
    refused : mapping of str to str, optional
        Methods that do not fit the model, with the reason.
    """

    def named(label: str | None) -> str | None:
        return None if label is None else (classes or {}).get(label, label)

    first, best, led = judged[0].found, best_of(judged), leading(judged)
    equal, larger = ([], []) if best is None else rivals(judged, best)
    ranked = sorted(judged, key=lambda one: (one is not led, not one.is_believable, -one.effect))
    return {
        "schema": SCHEMA,
        "model": model,
        "data": data,
        "n": first.n,
        "objective": first.conventions["objective"],
        "site": first.conventions["site"],
        "inputs": first.conventions.get("inputs", ""),
        "held": first.conventions.get("held", ""),
        "baseline": None if baseline is None else str(baseline),
        "places": list(features or first.place_names)
        if first.conventions["site"] == "input"
        else [],
        "best": None if best is None else best.word,
        "not_apart": [one.word for one in equal],
        "larger": [one.word for one in larger],
        "not_run": list(not_run),
        "refused": dict(refused or {}),
        "methods": [
            finite_json(
                {
                    "method": one.word,
                    "baseline": one.found.conventions["baseline"],
                    "believable": one.is_believable,
                    "effect": one.effect,
                    "effect_range": list(one.lead()),
                    "verdict": one.best.json() | {"label": named(one.best.label)},
                    "classes": [v.json() | {"label": named(v.label)} for v in one.verdicts[1:]],
                    "deletion": one.deletion,
                    "insertion": one.insertion,
                    "violation": one.violation,
                    "sanity": one.sanity,
                    "flags": list(one.found.flags),
                }
            )
            for one in ranked
        ],
        "examples": [
            finite_json(
                {
                    "id": batch.ids[i],
                    "places": list(where[i : i + 1]),
                    **(answers[i] if i < len(answers) else {}),
                    "objective": float(first.objective[i]),
                    "attributions": {
                        one.word: {"shape": list(by.shape), "values": by.flatten().tolist()}
                        for one in judged
                        for by in [_places(one.found, i)]
                    },
                }
            )
            for i in range(min(most, first.n))
        ],
    }


def _places(found: Attribution, i: int) -> Tensor:
    """Return the attribution of an example by position, or by unit if it has no positions."""
    return found.per_place[i].double().cpu()
