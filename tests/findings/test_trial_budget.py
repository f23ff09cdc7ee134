"""What trials of a scan may cost: operations counted on one forward, and what is left out."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import sonde
from findings._nets import evidence_of
from sonde.core.inputs import Model
from sonde.findings.evidence.facts import by_answers
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.trials.input_trials import variant_evidence
from sonde.findings.evidence.trials.part_trials import part_trials
from sonde.findings.scan import scan_stream
from sonde.findings.settings import ScanSettings
from sonde.findings.trial_budget import ForwardCost, TrialBudget, forward_cost
from sonde.tap import LiveStream

N, SIDE = 200, 8


class Mobile(nn.Module):
    """A depthwise convolution between two others, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.norm = nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)
        self.deep, self.act = nn.Conv2d(6, 6, 5, 1, 2, groups=6), nn.ReLU()
        self.last, self.head = nn.Conv2d(6, 10, 1), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(self.act(self.norm(self.first(x))))
        return self.head(self.act(self.last(x)).mean((2, 3)))


class Words(nn.Module):
    """An embedding of 5,000 tokens, which multiplies nothing, and a small linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5000, 32), nn.Linear(32, 7)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.table(input_ids).mean(1))


def pictures() -> LiveStream:
    generator = torch.Generator().manual_seed(1)
    x = 255 * torch.rand(N, 3, SIDE, SIDE, generator=generator)
    x *= torch.rand(N, 3, 1, 1, generator=generator)
    net = Mobile().requires_grad_(False).eval()
    net.head.bias -= net(x / 255).mean(0)
    label = net(x / 255).argmax(1)
    stream = sonde.read(
        Model(net), [{"x": a, "label": int(k)} for a, k in zip(x, label, strict=True)]
    )
    assert isinstance(stream, LiveStream)
    return stream


def with_budget(stream: LiveStream, operations: float) -> Evidence:
    cost = forward_cost(stream)
    evidence = evidence_of(stream)
    data = by_answers(evidence.data, stream.first_batch().logits)
    budget = TrialBudget(lambda: (cost, operations))
    return replace(evidence, data=data, budget=budget)


@pytest.mark.truth("2 x multiplications of each layer, counted by hand")
def test_products_are_counted_and_tables_that_only_look_up_are_not() -> None:
    half = SIDE // 2
    convolutions = half * half * (27 * 6 + 25 * 6 + 6 * 10)
    numbers = half * half * (6 + 6 + 6 + 6 + 10 + 10) + 10 + 4
    cost = forward_cost(pictures()).each
    assert cost == pytest.approx(2 * (convolutions + 40) + 100 * numbers, rel=0.02)
    texts = [{"input_ids": list(range(i, i + 8))} for i in range(40)]
    stream = sonde.read(Model(Words().eval()), texts)
    assert isinstance(stream, LiveStream)
    assert forward_cost(stream).each < 1e4 < 2 * 5000 * 32


@pytest.mark.slow
@pytest.mark.parametrize("gather", [variant_evidence, part_trials])
def test_trials_stay_within_the_budget_and_what_was_left_out_is_said(
    gather: Callable[[LiveStream, Evidence], object],
) -> None:
    stream = pictures()
    free = with_budget(stream, float("inf"))
    with free.budget.counting():
        gather(stream, free)
    whole = free.budget.spent
    assert free.budget.text() == ""
    tight = with_budget(stream, whole / 3)
    with tight.budget.counting():
        gather(stream, tight)
    assert 0 < tight.budget.spent <= whole / 3
    assert "not tried" in tight.budget.text()
    assert "--deep" in tight.budget.text()


def test_the_first_trials_run_and_the_rest_is_counted() -> None:
    budget = TrialBudget(lambda: (ForwardCost(1.0, 2.0), 40.0))
    kind = ("form of the inputs", "forms of the inputs")
    done = []
    for name, _ in budget.affordable(dict.fromkeys("abcdef"), 5, kind, 0.6):
        budget.note(5)
        done.append(name)
    assert done == ["a", "b"]  # 11 operations each, and 24 may be spent
    assert budget.text().startswith("4 forms of the inputs not tried")


@pytest.mark.slow
def test_a_budget_beside_another_takes_nothing_from_it_and_is_said() -> None:
    budget = TrialBudget(lambda: (ForwardCost(0.0, 1.0), 1e12))
    own = budget.beside(0.5)
    own.note(int(4e11))
    assert (budget.spent, budget.left()) == (0.0, 1e12)
    assert own.left() == pytest.approx(1e11)
    own.leave_out(("form", "forms"), 3)
    assert budget.text().startswith("3 forms not tried: trials may take about 15 s")


@pytest.mark.slow
def test_only_leaves_trials_out() -> None:
    def n_forwards(*only: str) -> int:
        stream, seen = replace(pictures(), check=False), list[int]()
        stream.model.module.register_forward_hook(lambda *_: seen.append(1))
        scan_stream(stream, settings=quiet(only))
        return len(seen)

    few = n_forwards("SND011")
    assert few <= 20 < few + 20 < n_forwards("SND011", "SND012")


def quiet(only: tuple[str, ...]) -> ScanSettings:
    return ScanSettings(progress=False, only=only)


@pytest.mark.slow
def test_the_trials_of_a_table_do_not_import_the_compiler() -> None:
    code = """
import sys, torch, sonde
from sonde.findings.evidence.trials.tempered_loss import fitted_constants
from sonde.findings.trial_budget import forward_cost
net = torch.nn.Linear(3, 2)
rows = [{"x": torch.randn(3), "label": i % 2} for i in range(9)]
assert forward_cost(sonde.read(net, rows)).each > 0
fitted_constants(torch.randn(9, 2), torch.arange(9) % 2, torch.eye(2))
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
