from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from findings._evidence import digits, evidence_of, shuffled, states, versus_of
from findings._nets import assert_clear, assert_raised
from sonde.findings.codes.snd044 import SND044
from sonde.findings.words.step import Again


def test_rows_sorted_by_label_are_raised_and_shuffled_ones_are_not() -> None:
    x, label = digits()
    order = torch.argsort(label, stable=True)
    check = SND044().check(evidence_of(states(x[order])[0]))
    assert_raised(check, "note")
    assert SND044().check(evidence_of(states(x[shuffled(1797)])[0])).state == "clear"


@pytest.mark.slow
def test_it_is_a_warning_where_p_values_are_printed_without_groups() -> None:
    x, label = digits()
    order = torch.argsort(label, stable=True)
    ordered, other = x[order], x[shuffled(1797)[:200]]
    assert_raised(SND044().check(versus_of(ordered, other)), "warning")
    grouped = evidence_of(ordered, group=[i // 3 for i in range(1797)])
    assert_raised(SND044().check(replace(grouped, versus=versus_of(ordered, other).versus)), "note")


def test_rows_in_random_order_never_raise_it() -> None:
    raised = 0
    for seed in range(24):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(250, 3)) if seed % 2 else rng.standard_t(3, size=(250, 1))
        raised += SND044().check(evidence_of(x)).state == "raised"
    assert raised == 0


@pytest.mark.slow
@pytest.mark.truth("planted: each row of digits with a near copy, or steps in time")
def test_files_sorted_by_label_are_judged_within_labels() -> None:
    x, label = digits()
    by_writer = torch.argsort(label, stable=True)  # in each class still writer after writer
    assert SND044().check(evidence_of(x[by_writer], label=label[by_writer])).state == "raised"
    mixed = shuffled(1797)
    order = mixed[torch.argsort(label[mixed], stable=True)]
    ordered, known = x[order], label[order]
    figure = assert_clear(SND044().check(evidence_of(ordered, label=known)))
    assert figure.value == pytest.approx(1.0, abs=0.03)
    assert SND044().check(evidence_of(ordered, label=known - 1)).state == "raised"  # one unknown
    off = 1e-3 * torch.randn(1796, 64, generator=torch.Generator().manual_seed(0))
    for rows, wanted in ((order, 0.5), (mixed, 0.63)):  # each row with a copy a little off
        twice = rows[:898].repeat_interleave(2)
        check = SND044().check(evidence_of(x[twice] + off, label=label[twice]))
        assert check.figure is not None
        assert check.state == "raised"
        assert check.figure.value == pytest.approx(wanted, abs=0.03)
    drift = 0.2 * (torch.arange(1797) // 40 % 2)[:, None] * torch.ones(64)
    assert SND044().check(evidence_of(ordered + drift, label=known)).state == "raised"


@pytest.mark.slow
def test_independent_rows_under_any_order_of_labels_never_raise_it() -> None:
    raised = 0
    for seed in range(24):
        rng = np.random.default_rng(seed)
        label = rng.choice(4, size=600, p=(0.6, 0.2, 0.1, 0.1))
        label = np.sort(label) if seed % 3 else label
        label[:200] = np.sort(label[:200]) if seed % 2 else label[:200]
        spread = np.array([0.3, 1.0, 2.0, 0.5])[label][:, None]
        x = 3.0 * np.eye(4)[label] + spread * rng.normal(size=(600, 4))
        raised += SND044().check(evidence_of(x, label=label)).state == "raised"
    assert raised == 0


@pytest.mark.truth("von Neumann's ratio in numpy, over pairs inside units")
def test_value_is_the_ratio_of_steps_to_spread() -> None:
    x = digits()[0].double()
    check = SND044().check(evidence_of(x))
    assert check.figure is not None
    step = np.diff(x.numpy(), axis=0)
    inside = np.arange(1, 1797) % 256 != 0
    steps = (step[inside] ** 2).sum(1).mean()
    assert check.figure.value == pytest.approx(steps / (2 * x.numpy().var(0, ddof=1).sum()))


def test_few_pairs_are_withheld() -> None:
    assert SND044().check(evidence_of(digits()[0][:96])).state == "withheld"


@pytest.mark.truth("steps between the last row of a group and the first of the next, in numpy")
def test_rows_of_one_group_are_no_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(300, 8, generator=generator).double()
    x = means.repeat_interleave(5, 0) + 0.3 * torch.randn(1500, 8, generator=generator)
    figure = assert_clear(SND044().check(evidence_of(x, group=torch.arange(1500) // 5)))
    first = np.arange(1499)
    kept = first[(first + 1) % 5 == 0]
    step = (x[kept + 1] - x[kept]).square().sum(1).numpy()
    spread = 2 * x.numpy().var(0, ddof=1).sum()
    assert figure.value == pytest.approx(step.mean() / spread, rel=0.03)
    assert SND044().check(evidence_of(x)).state == "raised"


def test_the_next_step_can_be_run_on_the_data_as_they_are(tmp_path: Path) -> None:
    def step(name: str) -> str:
        evidence = evidence_of(torch.arange(1500.0)[:, None])
        data = replace(evidence.data, name=name)
        found = SND044().check(replace(evidence, data=data)).finding
        assert found is not None
        return Again("net", name, is_command=True).text(found.next)

    assert step("rows.csv") == "sonde scan net rows.csv --group-column COLUMN"
    columns = "--image-column IMAGE --group-column COLUMN"
    assert step(str(tmp_path)) == f"sonde scan net TABLE.jsonl {columns}"
    assert step("sonde:digits/test") == ""
