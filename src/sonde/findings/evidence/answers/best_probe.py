"""The best answer that is known to be possible, row by row: a probe of any layer or of the inputs.

A damaged last layer says little about what a model could answer; layers before the fault, and the
inputs themselves, may say more.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from sonde.findings.evidence.answers.answers import class_answers, compared_answers
from sonde.findings.evidence.answers.number_answers import (
    held_out_numbers,
    number_answers,
    number_rows,
)
from sonde.findings.evidence.answers.reference import Reference
from sonde.findings.evidence.once import once
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import shared_rows
from sonde.findings.evidence.texts.lens import LensEvidence, measure_lens
from sonde.findings.trial import Measure
from sonde.stats.linear_classifiers import held_out_scores
from sonde.tap import LiveStream
from sonde.tap.streams.small_batches import SmallBatches, small_batches

ROWS, LEAST_ROWS, NUMBERS = 1024, 256, 20_000_000
SIDE, WIDEST = 16, 512
FEWEST: Final = 12
INPUTS, REFERENCE = "its inputs", "the reference"


@dataclass(frozen=True, eq=False)
class InputRows:
    """The floating-point inputs of sampled rows: images pooled, wide rows projected.

    Parameters
    ----------
    order : Int[Tensor, "row"]
        Examples by planned order.
    x : Float[Tensor, "row dim"]
        Each column has mean 0 and variance 1.
    """

    order: Int[Tensor, "row"]
    x: Float[Tensor, "row dim"]


@dataclass(frozen=True, eq=False)
class BestProbe:
    """Scores of the best held-out probe, on the scale of the trials with the same measure.

    Parameters
    ----------
    where : str
        The site, ``its inputs``, or ``the reference``.
    measure : {"accuracy", "error", "loss"}
    mean : float
        Mean score of the probe.
    constant : float
        Mean score of the commonest label, of the targets' mean, or of the tokens' frequencies.
    scores : mapping of int to float
        Score of the probe by example; empty if only the mean is known.
    """

    where: str
    measure: Measure
    mean: float
    constant: float
    scores: Mapping[int, float]

    def on(self, rows: Int[Tensor, "row"]) -> float:
        """Return the probe's mean score on these examples, or on all if few of them are known."""
        scored = [self.scores[i] for i in rows.tolist() if i in self.scores]
        return sum(scored) / len(scored) if len(scored) >= FEWEST else self.mean


@once
def best_probe(evidence: Evidence) -> BestProbe | None:
    """Return the probe with the best mean score, or None if no answer is known to be correct.

    Healthy answers that the user gives as a reference compete with the probes.
    """
    return max(_probes(evidence), key=lambda probe: probe.mean, default=None)


def _probes(evidence: Evidence) -> Iterator[BestProbe]:
    numbers, classes, lens = (
        number_answers(evidence),
        compared_answers(evidence),
        evidence.get(measure_lens),
    )
    order = shared_rows(evidence).order
    if isinstance(lens, LensEvidence) and math.isfinite(lens.final):
        if lens.loss is not None:
            at = int(torch.argmin(lens.loss))
            yield BestProbe(lens.sites[at], "loss", -float(lens.loss[at]), -lens.unigram, {})
    elif order is None:
        return
    elif not isinstance(numbers, str):
        labelled = number_rows(evidence)
        assert not isinstance(labelled, str)  # number_answers asks for the same
        where, _, truth = labelled
        spread = float(numbers.mean.mean())
        for site, error in numbers.probes:
            yield _scored(site, "error", order[where], 1 - error / spread, 0.0)
        yield from _reference(evidence, "error", 0.0)
        x, at = _inputs_at(evidence, order[where])
        if x is not None:
            predicted = held_out_numbers(x, truth[at], numbers.group[at])
            score = 1 - (predicted - truth[at]).square() / spread
            yield _scored(INPUTS, "error", order[where][at], score, 0.0)
    elif not isinstance(classes, str) and classes.labels is not None:
        probed = classes.labels
        rows, majority = order[probed.where], probed.majority
        for site in probed.sites:
            yield _scored(site.key, "accuracy", rows, site.hit, majority)
        yield from _reference(evidence, "accuracy", majority)
        x, at = _inputs_at(evidence, rows)
        if x is not None:
            hit = _hits(x, probed.truth[at], probed.group[at])
            yield _scored(INPUTS, "accuracy", rows[at], hit, majority)


def own_score(evidence: Evidence) -> float | None:
    """Return the model's accuracy, or its R^2 against the targets' mean; None if unknown."""
    numbers, classes = number_answers(evidence), class_answers(evidence)
    if not isinstance(numbers, str):
        return 1 - float(numbers.own.mean() / numbers.mean.mean())
    return None if isinstance(classes, str) else classes.accuracy


def reference_lead(evidence: Evidence) -> float:
    """Return how much better the healthy answers are than the model's, in accuracy or R^2.

    0 without a reference.
    """
    reference, own = evidence.reference, own_score(evidence)
    return reference.mean - own if isinstance(reference, Reference) and own is not None else 0.0


def _reference(evidence: Evidence, measure: Measure, constant: float) -> Iterator[BestProbe]:
    """Yield the healthy answers that the user gives, if they are judged by this measure."""
    reference = evidence.reference
    if isinstance(reference, Reference) and reference.measure == measure:
        yield BestProbe(REFERENCE, measure, reference.mean, constant, reference.scores)


def _scored(
    where: str,
    measure: Measure,
    rows: Int[Tensor, "row"],
    score: Float[Tensor, "row"],
    constant: float,
) -> BestProbe:
    scores = dict(zip(rows.tolist(), score.tolist(), strict=True))
    return BestProbe(where, measure, float(score.mean()), constant, scores)


def _inputs_at(
    evidence: Evidence, rows: Int[Tensor, "row"]
) -> tuple[Float[Tensor, "row2 dim"] | None, Int[Tensor, "row2"]]:
    """Return the known inputs of these examples, and which of the examples they belong to."""
    given = evidence.get(input_rows)
    if given is None:
        return None, rows
    place = {example: i for i, example in enumerate(given.order.tolist())}
    at = [i for i, example in enumerate(rows.tolist()) if example in place]
    if len(at) < LEAST_ROWS // 4:
        return None, rows
    kept = torch.tensor(at)
    return given.x[torch.tensor([place[i] for i in rows[kept].tolist()])], kept


def _hits(
    x: Float[Tensor, "row dim"], truth: Int[Tensor, "row"], group: Int[Tensor, "row"]
) -> Float[Tensor, "row"]:
    """Return 1 for each row whose class a probe fitted without the row's fold finds."""
    classes = torch.unique(truth)
    even, odds = held_out_scores(x, truth, group, classes)
    return (classes[(even + odds).argmax(1)] == truth).double()


def input_rows(stream: LiveStream, evidence: Evidence) -> InputRows | None:
    """Read the inputs of sampled rows again; None if no input is a tensor of floats."""
    order = shared_rows(evidence).order
    first = None if order is None else small_batches(
        stream.model, stream.inputs, order[:1].tolist(), None
    )  # fmt: skip
    size = 0 if first is None or not len(first) else _floats(first).shape[1]
    if order is None or size == 0:
        return None
    n = min(ROWS, max(LEAST_ROWS, NUMBERS // size))
    small = small_batches(stream.model, stream.inputs, order[:n].tolist(), None)
    whole = small.together(range(len(small)))
    x = torch.cat([_floats(replace(small, singles=(one,))) for one in small.singles])
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-12)
    if x.shape[1] > WIDEST:
        draw = torch.Generator().manual_seed(evidence.data.seed)
        x = x @ torch.randn(x.shape[1], WIDEST, generator=draw, dtype=x.dtype) / WIDEST**0.5
    return InputRows(whole.order, x)


def _floats(small: SmallBatches) -> Float[Tensor, "row dim"]:
    """Return the finite numbers of all floating-point inputs, images pooled to 16 x 16 pixels."""
    batch = small.together(range(len(small)))
    tensors = [x.detach().cpu().double() for x in (*batch.args, *batch.kwargs.values())
             if isinstance(x, Tensor) and x.is_floating_point() and x.ndim > 1]  # fmt: skip
    tensors = [
        adaptive_avg_pool2d(x, SIDE) if x.ndim == 4 and min(x.shape[-2:]) > SIDE else x
        for x in tensors
    ]
    rows = [x.flatten(1) for x in tensors] or [torch.zeros(len(small), 0, dtype=torch.float64)]
    return torch.nan_to_num(torch.cat(rows, 1), posinf=0.0, neginf=0.0)
