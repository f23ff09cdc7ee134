"""Copies of the rows that judge a trial do not make a difference by chance sure."""

import numpy as np
import pytest
import torch
from torch import Tensor

from findings._evidence import evidence_of
from findings._nets import assert_clear, assert_raised
from sonde.findings.codes import snd074
from sonde.findings.codes.snd015 import SND015
from sonde.findings.evidence.inputs import suspect_labels as labels
from sonde.findings.evidence.trials.input_trials import VariantEvidence, variant_evidence
from sonde.findings.evidence.trials.simplest_factor import simplest_factor
from sonde.findings.evidence.trials.tried_forms import Tried
from sonde.findings.rule import Check, Figure, Finding
from sonde.findings.tournament import name_cause
from sonde.findings.trial import Scope, Trial

COPIES = 4


def copied(values: Tensor) -> Tensor:
    return values.repeat_interleave(COPIES)


def formed(n: int, copies: int = 1) -> Check:
    """Return SND015 of a form that corrects two thirds of n different rows that judge."""
    x = torch.randn(2 * n, 6, generator=torch.Generator().manual_seed(1))
    x = x.repeat_interleave(copies, 0)
    row = torch.arange(2 * n).repeat_interleave(copies)
    evidence = evidence_of(x, label=torch.zeros(len(x), dtype=torch.int64))
    assert len(set(evidence.data.group_keys)) == 2 * n
    before, after = (row // 2 >= 2 * n // 3).double(), torch.ones(len(x)).double()
    given, best = Tried("", before, 0.0), Tried("inverted", after, 0.0)
    chooses = row % 2 == 0
    found = VariantEvidence(
        tried=(given, best), probe=1.0, rows=torch.arange(len(x)), chooses=chooses, best=best
    )
    return SND015().check(evidence.having({variant_evidence: found}))


@pytest.mark.truth("sign test of eight different rows: 1 in 256, more than 0.1 %")
def test_a_form_that_corrects_eight_rows_is_no_surer_by_their_copies() -> None:
    assert assert_clear(formed(12)).p == pytest.approx(2**-8)
    assert assert_clear(formed(12, COPIES)).p == pytest.approx(2**-8)
    assert_raised(formed(12 * COPIES), "error")


@pytest.mark.truth("the p-value of the same rows, each there once")
@pytest.mark.parametrize("is_number", [False, True])
def test_a_column_leads_no_more_surely_on_copies(is_number: bool) -> None:
    draw = np.random.default_rng(3)
    lead = draw.normal(0.4, 1.0, 40)
    lead = lead if is_number else np.sign(lead.round())
    row = np.arange(40)
    once = snd074._chance(lead, row, is_number)
    often = snd074._chance(lead.repeat(COPIES), row.repeat(COPIES), is_number)
    assert often == pytest.approx(once)
    assert snd074._chance(lead.repeat(COPIES), np.arange(160), is_number) < once / 3


def test_a_model_that_is_by_chance_worse_on_seven_rows_of_nine_is_no_worse_by_copies() -> None:
    truth = torch.zeros(40, dtype=torch.int64)
    right = torch.tensor([[1.0, 0.0]]).repeat(40, 1)
    one, other = right.clone(), right.clone()
    one[:7], other[7:9] = one[:7].flip(1), other[7:9].flip(1)
    rows = torch.arange(40)
    assert not labels._is_worse(one, other, truth, rows)
    again = [x.repeat_interleave(COPIES, 0) for x in (one, other)]
    assert not labels._is_worse(*again, copied(truth), copied(rows))
    assert labels._is_worse(*again, copied(truth), torch.arange(160))


def test_labels_wrong_in_one_direction_are_counted_by_groups() -> None:
    draw = np.random.default_rng(2)
    truth = torch.from_numpy(draw.integers(0, 2, 60))
    said = torch.from_numpy(np.where(draw.random(60) < 0.3, 0, truth))
    score = 2.0 * torch.nn.functional.one_hot(said, 2) + torch.from_numpy(draw.random((60, 2)))
    rows = torch.arange(60)
    half = rows % 2 == 0

    def way(n: int, group: Tensor) -> labels.OneWay | None:
        parts = (score.repeat_interleave(n, 0), said.repeat_interleave(n))
        truths, halves = (x.repeat_interleave(n) for x in (truth, half))
        return labels._pair(*parts, truths, 0, 1, halves, group)

    once, often, rowwise = way(1, rows), way(4, copied(rows)), way(4, torch.arange(240))
    assert once is not None
    assert often is not None
    assert rowwise is not None
    assert often.p == pytest.approx(once.p)
    assert rowwise.p < once.p / 10


def test_the_simplest_factor_is_not_refused_for_copies() -> None:
    worse = torch.tensor([1.0] * 36 + [0.0] * 4)  # four of forty rows: p .06

    def scores(factor: float) -> Tensor:
        return copied(torch.ones(40) if factor == 2.54 else worse)

    group = copied(torch.arange(40))
    assert simplest_factor(scores, 2.54, (2.54,), group).factor == 1.0e1
    assert simplest_factor(scores, 2.54, (2.54,)).factor == 2.54


def _cause(group: Tensor | None) -> str | None:
    """Return the cause of a constant and a form that correct all rows, the form more surely."""
    n = 16
    draw = torch.Generator().manual_seed(4)
    loss = torch.rand(n, generator=draw) + 1.0
    lower = 0.6 * loss.mean() * torch.ones(n)
    lower[:5] = loss[:5] + 0.6  # eleven of sixteen rows are surer
    before, after = torch.zeros(COPIES * n).double(), torch.ones(COPIES * n).double()

    def found(code: str, scope: Scope, nats: Tensor) -> Check:
        tried = Trial(code, scope, "accuracy", torch.arange(COPIES * n), before, after,
                      copied(nats).double(), group)  # fmt: skip
        figure = Figure("value", 1.0)
        return Check(
            code, "raised", "", figure, Finding(code, "warning", "A.", figure, trial=tried)
        )

    checks = found("SND046", "answers", loss), found("SND015", "inputs", lower)
    settled = name_cause({check.code: check for check in checks})
    named = [c.finding.code for c in settled.values() if c.finding and c.finding.is_cause]
    return named[0] if named else None


def test_a_larger_change_is_not_preferred_for_the_losses_of_copies() -> None:
    rows = torch.arange(16)
    assert _cause(copied(rows)) == "SND046"
    assert _cause(None) == "SND015"
