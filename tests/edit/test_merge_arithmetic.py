"""Sums of task vectors: by hand, by a loop over entries, and their limits."""

import numpy as np
import pytest
import torch

from sonde.core.errors import InputError, ShapeError
from sonde.edit import Dare, Slerp, TaskArithmetic, Ties


def models(n=3, shape=(7, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    base, *others = (torch.randn(shape, generator=generator) for _ in range(n + 1))
    return base, [base + 0.1 * other for other in others]


def ties_by_loops(base, others, density, weight):
    """Yadav et al., section 3.2, one entry at a time."""
    tasks = [(other - base).flatten().tolist() for other in others]
    n = max(1, int(density * base.numel()))
    for task in tasks:
        chosen = sorted(range(len(task)), key=lambda i: -abs(task[i]))[:n]
        task[:] = [value if i in chosen else 0.0 for i, value in enumerate(task)]
    merged = []
    for i, start in enumerate(base.flatten().tolist()):
        values = [task[i] for task in tasks]
        sign = np.sign(sum(values))
        agreed = [value for value in values if value * sign > 0]
        merged.append(start + weight * (sum(agreed) / len(agreed) if agreed else 0.0))
    return torch.tensor(merged).reshape(base.shape)


@pytest.mark.truth("the three steps of the paper, one entry at a time")
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties_is_the_papers_three_steps(density):
    base, others = models()
    expected = ties_by_loops(base, others, density, 0.7)
    torch.testing.assert_close(Ties(density, 0.7).merge("w", base, others), expected)


def test_signs_are_elected_by_mass():
    base = torch.zeros(3)
    tasks = [*torch.tensor([[3.0, -1.0, 2.0], [-1.0, -1.0, -2.0], [-1.0, 4.0, 0.0]])]
    assert Ties(density=1.0).merge("w", base, tasks).tolist() == [3.0, 4.0, 0.0]


def test_arithmetic_adds_and_disjoint_models_are_added_by_ties_too():
    base = torch.randn(4)
    first, second = base.clone(), base.clone()
    first[0] += 1.0
    second[3] -= 2.0
    added = base + torch.tensor([1.0, 0.0, 0.0, -2.0])
    torch.testing.assert_close(TaskArithmetic(1.0).merge("w", base, [first, second]), added)
    torch.testing.assert_close(Ties(1.0).merge("w", base, [first, second]), added)


@pytest.mark.truth("mean of 2,000 draws")
def test_dare_is_unbiased_and_seeded_by_the_name():
    base, others = models(1, (40,))
    rule = Dare(0.9, TaskArithmetic(1.0))
    draws = [Dare(0.9, TaskArithmetic(1.0), seed).merge("w", base, others) for seed in range(2000)]
    task = others[0] - base
    apart = torch.stack(draws).mean(0) - base - task
    assert (apart.abs() < 5 * 3 * task.abs() / 2000**0.5).all()  # a draw's sd is 3 |task|
    changed = {round(float((x != base).double().mean()), 2) for x in draws[:50]}
    assert 0.02 < sum(changed) / len(changed) < 0.25
    again = rule.merge("w", base, others)
    assert torch.equal(rule.merge("w", base, others), again)
    assert not torch.equal(rule.merge("v", base, others), again)


@pytest.mark.parametrize("rule", [TaskArithmetic(), Ties(), Dare(), Dare(0.5, Ties())])
def test_models_that_learned_nothing_leave_the_base(rule):
    base, _ = models()
    assert torch.equal(rule.merge("w", base, [base.clone(), base.clone()]), base)


def test_shares_out_of_range_are_refused():
    with pytest.raises(InputError, match=r"density in \(0, 1\]"):
        Ties(density=0.0)
    with pytest.raises(InputError, match=r"remove in \[0, 1\)"):
        Dare(remove=1.0)


@pytest.mark.truth("the number of entries that are kept")
@pytest.mark.parametrize("density", [0.2, 0.55])
@pytest.mark.parametrize("kind", ["constant", "bfloat16", "normal"])
def test_entries_that_tie_at_the_border_keep_the_share(kind, density):
    task = torch.randn(40, 25, generator=torch.Generator().manual_seed(0))
    task = {"constant": 0 * task - 0.3, "bfloat16": task.bfloat16().float()}.get(kind, task)
    kept = Ties(density).merge("w", torch.zeros(40, 25), [task])
    assert int((kept != 0).sum()) == round(1000 * density)
    assert kept.abs()[kept != 0].min() >= task.abs()[kept == 0].max()


def test_weights_that_are_no_numbers_are_refused():
    nan = float("nan")
    for rule in (TaskArithmetic, Ties, Slerp):
        with pytest.raises(InputError, match="expected a finite weight, got nan"):
            rule(weight=nan)
    one = torch.ones(3)
    with pytest.raises(InputError, match=r"TaskArithmetic\.merge: .* 1 of 3 .* w of the base"):
        TaskArithmetic().merge("w", torch.tensor([1.0, nan, 2.0]), [one])
    with pytest.raises(ShapeError, match=r"shape \(3,\).*\(1,\) of model 2 beside the base"):
        TaskArithmetic().merge("w", one, [one, torch.ones(1)])
