"""Trials that undo anomalies of weights and buffers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.trials.batch_norm_fits import CHUNK
from sonde.findings.evidence.trials.row_scores import Around, row_scores
from sonde.findings.self_check import thinned
from sonde.findings.trial import Trial, chooses_by_key
from sonde.tap import LiveStream
from sonde.tap.model.watch import watch
from sonde.tap.streams.small_batches import SmallBatches

MOST_ALONE: Final = 3
"""Outlying weights that are each tried by themselves, the largest first."""
BatchNorm = nn.modules.batchnorm._BatchNorm


def refitted_norms(
    stream: LiveStream,
    evidence: Evidence,
    small: SmallBatches,
    every: SmallBatches,
    choices: Mapping[str, Sequence[BatchNorm]],
) -> Trial | None:
    """Return the trial of batch norms with the statistics of the selection rows.

    If a few rows cannot tell whether the chosen change helps, as many rows judge it as the budget
    allows.

    Parameters
    ----------
    stream, evidence : LiveStream, Evidence
    small, every : SmallBatches
        Rows that the changes are tried on, and the rows that may judge the chosen one.
    choices : mapping of str to sequence of BatchNorm
        Norms that are changed together, by the words for them. The rows that choose a change choose
        among these; the others judge.
    """
    before = row_scores(stream, evidence, small)
    first = chooses_by_key([key for one in small.singles for key in one.group_keys])
    rows = torch.nonzero(first).flatten().tolist()
    if before is None or min(len(rows), len(small) - len(rows)) < CHUNK // 2:
        return None
    best, most, chosen = None, -math.inf, list[BatchNorm]()
    fitting = replace(small, singles=tuple(small.singles[i] for i in rows))
    for words, norms in choices.items():
        with _refitted(stream, fitting, norms):
            after = row_scores(stream, evidence, small)
        if after is None or not torch.equal(after.rows, before.rows):
            continue
        mean = float(after.score[after.chooses].mean())
        if mean > most:
            change_words = f"the statistics of these rows in {words}"
            best, most, chosen = before.tried(after, change_words, "statistics"), mean, [*norms]
    if best is None or best.holds or best.gain <= 0:
        return best
    more = thinned(every, evidence.budget.rows(len(every), 0, 2), evidence.data.seed)
    before = row_scores(stream, evidence, more) if len(more) > len(small) else None
    with _refitted(stream, fitting, chosen):
        after = row_scores(stream, evidence, more) if before is not None else None
    if before is None or after is None or not torch.equal(after.rows, before.rows):
        return best
    return before.tried(after, best.change, "statistics")


@contextmanager
def _refitted(
    stream: LiveStream, small: SmallBatches, norms: Sequence[BatchNorm]
) -> Iterator[None]:
    """Set batch norms to the statistics of some rows, all norms in one batch."""
    names = ("running_mean", "running_var", "num_batches_tracked")
    held = [(n, name, b.clone()) for n in norms for name in names
            if (b := getattr(n, name, None)) is not None]  # fmt: skip
    modes = [(n, n.training, n.momentum) for n in norms]
    try:
        for norm in norms:
            norm.training, norm.momentum = True, 1.0
        batch = small.together(range(len(small)))
        watch(stream.model.module, batch, (), as_found=True, place=stream.probe.place)
        for norm, training, momentum in modes:
            norm.training, norm.momentum = training, momentum
        yield
    finally:
        for norm, training, momentum in modes:
            norm.training, norm.momentum = training, momentum
        for norm, name, buffer in held:
            norm.get_buffer(name).copy_(buffer)


@dataclass(frozen=True, eq=False)
class Resized:
    """The trial of weights divided by their size relative to their siblings.

    Parameters
    ----------
    trial : Trial
    paths : tuple of str
        The layers that were divided, the largest deviation first.
    """

    trial: Trial
    paths: tuple[str, ...]


def resized_weights(
    stream: LiveStream, evidence: Evidence, small: SmallBatches, ratios: Mapping[str, float]
) -> Resized | None:
    """Return the trial of weights divided by their size relative to their siblings.

    The factor comes from the weights alone, so that no row chooses it. Of several weights, those
    whose own division makes the answers worse by a tenth were trained so, and keep their size; the
    trial is of the others together, and of all if no other is left.
    """
    before = row_scores(stream, evidence, small)
    if before is None:
        return None

    def tried(some: Mapping[str, float]) -> Resized | None:
        modules = stream.probe.names.modules
        weights = [(w, r) for path, r in some.items() if (w := _weight(modules[path])) is not None]
        after = row_scores(stream, evidence, small, _divided(weights)) if weights else None
        if after is None:
            return None
        path = next(iter(some))
        rest = f" and {len(some) - 1} more" if len(some) > 1 else ""
        words = f"the weights of {path}{rest} divided by {some[path]:.3g}"
        trial = before.tried(after, words, "part")
        return None if trial is None else Resized(trial, tuple(some))

    alone = {path: tried({path: ratios[path]}) for path in [*ratios][:MOST_ALONE]}
    lost = {path for path, one in alone.items() if one is not None and loses(one.trial)}
    rest = {path: ratio for path, ratio in ratios.items() if path not in lost} or ratios
    return alone[next(iter(rest))] if len(rest) == 1 else tried(rest)


def loses(trial: Trial) -> bool:
    """Return whether the answers after the change are worse by a tenth of their score."""
    before, after = float(trial.before.mean()), float(trial.after.mean())
    return after < before - 0.1 * abs(before)


def _weight(module: nn.Module) -> Tensor | None:
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return None if weight is None else weight.data


def _divided(weights: Sequence[tuple[Tensor, float]]) -> Around:
    @contextmanager
    def around() -> Iterator[None]:
        before = [w.clone() for w, _ in weights]
        try:
            for weight, ratio in weights:
                weight.div_(ratio)
            yield
        finally:
            for (weight, _), old in zip(weights, before, strict=True):
                weight.copy_(old)

    return around
