"""A law over drawn reports: no check says that the answers are fine while another finds them poor.

Each report is drawn as evidence: the losses of a language model, or the answers of a classifier or
of a regression whose states know more, as much, or less than its answers.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

import pytest
import torch
from torch.nn.functional import one_hot

from findings import _evidence as arrays
from sonde.findings.catalogue import rule_classes
from sonde.findings.evidence.modules.block_training import BlockTraining, compare_blocks
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.lens import LensEvidence, TextAnswers, measure_lens
from sonde.findings.evidence.trials.part_trials import FINE, _suffers, part_trials
from sonde.findings.rule import Check
from sonde.findings.scan import run_rule

POOR: Final = ("SND029", "SND037", "SND046")
"""Codes that are raised because the answers are worse than they could be."""
IS_FINE: Final = (
    *FINE,
    "the answers are not poor enough to look for a cause",
)
"""Reasons of checks that have nothing to look for."""
EVEN: Final = BlockTraining(tuple("abcdef"), *[tuple(0.01 * i for i in range(6))] * 3)


def checks_of(evidence: Evidence) -> list[Check]:
    """Return the checks that read the answers; trials of parts only say if they have a reason."""
    known: dict[Any, Any] = {compare_blocks: EVEN}
    evidence = evidence.having(known)
    reason = _suffers(evidence)
    evidence = evidence.having({**known, part_trials: reason} if reason else known)
    codes = {*POOR, "SND068", "SND070"}
    checks = [run_rule(rule(), evidence) for code, rule in rule_classes().items() if code in codes]
    assert len(checks) == len(codes)
    assert all(check.state != "failed" for check in checks), checks
    return checks


def assert_one_voice(checks: list[Check]) -> bool:
    """Assert that no check calls answers fine that another calls poor; return if one does."""
    poor = [c.finding for c in checks if c.finding and c.code in POOR and c.finding.level != "note"]
    fine = [c for c in checks if c.reason in IS_FINE]
    assert not (poor and fine), ([f.sentence for f in poor], [(c.code, c.reason) for c in fine])
    return bool(poor or fine)


@cache
def texts_read() -> Evidence:
    """Return the evidence of 40 texts."""
    return arrays.evidence_of(torch.randn(40, 3))


def language_model(draw: torch.Generator) -> Evidence:
    """Draw a language model whose loss is below or above counts, frequencies, or both."""
    final, unigram, counted = (0.5 + 9 * torch.rand(3, generator=draw)).tolist()
    ids = tuple(torch.randint(0, 30, (12,), generator=draw) for _ in range(40))
    losses = tuple(final + 0.1 * torch.randn(11, generator=draw) for _ in ids)
    counts = tuple(counted + 0.1 * torch.randn(11, generator=draw) for _ in ids)
    texts = TextAnswers(ids, losses, counts, torch.rand(40, 30, generator=draw), {})
    cost = 2 * float(torch.rand(1, generator=draw))
    lens = LensEvidence(
        final=final, final_se=0.05, unigram=unigram, doubt=0.1, expected=unigram + cost,
        expected_by_rank=unigram + cost / 4, counted=counted,
        counted_tokens=int(torch.randint(1, 4, (1,), generator=draw)), texts=texts, n_words=30,
        n_rows=440, n_groups=40,
    )  # fmt: skip
    return texts_read().having({measure_lens: lens})


def classifier(draw: torch.Generator) -> Evidence:
    """Draw a classifier that knows some labels, and a site whose rows know others."""
    n, known, noise = 200, *torch.rand(2, generator=draw).tolist()
    label = torch.randint(0, 4, (n,), generator=draw)
    x = one_hot(label, 4) + 3 * noise**2 * torch.randn(n, 4, generator=draw)
    is_known = torch.rand(n, generator=draw) < 1.6 * known
    answer = torch.where(is_known, label, torch.randint(0, 4, (n,), generator=draw))
    logits = 6.0 * one_hot(answer, 4) + torch.randn(n, 4, generator=draw)
    return arrays.evidence_of(x, label=label, logits=logits, facts={"labels_are_models": True})


def regression(draw: torch.Generator) -> Evidence:
    """Draw a regression with answers and a site of random errors and scales."""
    n = 300
    own, noise, scale = torch.rand(3, generator=draw).tolist()
    y = torch.randn(n, generator=draw)
    x = torch.stack([y + 2 * noise * torch.randn(n, generator=draw) for _ in range(3)], 1)
    answer = (0.5 + 2 * scale) * y + 2 * own**2 * torch.randn(n, generator=draw)
    return arrays.evidence_of(x, logits=answer[:, None], facts={"target": y.double()})


def reports(kind: Callable[[torch.Generator], Evidence], n: int) -> Iterator[list[Check]]:
    for seed in range(n):
        yield checks_of(kind(torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize(("kind", "n"), [(language_model, 30), (classifier, 6), (regression, 6)])
def test_no_check_calls_answers_fine_that_another_calls_poor(
    kind: Callable[[torch.Generator], Evidence], n: int
) -> None:
    spoke = [assert_one_voice(checks) for checks in reports(kind, n)]
    assert sum(spoke) > n // 3
