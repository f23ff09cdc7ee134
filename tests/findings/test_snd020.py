from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

import sonde
from findings import _evidence as arrays
from findings._counting import Counter, counting
from findings._nets import Patches, assert_clear, assert_raised, evidence_of, tensors
from lm_twin_case import TEXTS, twin
from sonde.findings.codes.snd020 import SND020
from sonde.findings.evidence.modules.fresh_weights import find_fresh_layers, fresh_layers
from sonde.findings.evidence.trials import weight_sizes
from sonde.findings.evidence.trials.anomaly_trials import Resized, resized_weights
from sonde.findings.rule import Check
from sonde.findings.trial import Trial
from sonde.findings.trial_budget import ForwardCost, TrialBudget
from sonde.tap import LiveStream
from sonde.tap.streams.small_batches import small_batches


def ended(factor: float, depth: int = 6, trial: Trial | None = None) -> Check:
    net = Patches(dim=24, depth=depth).eval().requires_grad_(False)
    net.get_submodule("blocks.2.up").get_parameter("weight").mul_(factor)
    stream = tensors(net, torch.randn(16, 5, 24, generator=torch.Generator().manual_seed(0)))
    known = {find_fresh_layers: fresh_layers(stream, 0)}
    tried = {} if trial is None else {weight_sizes.resized: Resized(trial, ("blocks.2.up",))}
    return SND020().check(evidence_of(stream).having(known | tried))


@pytest.mark.parametrize("factor", [10.0, 0.1])
def test_a_weight_of_another_size_is_named(factor: float) -> None:
    finding = assert_raised(ended(factor), "warning")
    assert finding.sites == ("blocks.2.up",)
    assert finding.figure.value == pytest.approx(factor, rel=0.1)


@pytest.mark.parametrize(("after", "level"), [(-8.9, "note"), (-2.5, "warning"), (-1.2, "warning")])
def test_a_weight_without_which_the_answers_get_worse_is_a_note(after: float, level: str) -> None:
    before = torch.tensor([-2.4, -2.5, -2.6])
    changed = before + after + 2.5
    trial = Trial("blocks.2.up / 10", "part", "loss", torch.arange(3), before, changed)
    assert_raised(ended(10.0, trial=trial), level)


@pytest.mark.slow
@torch.no_grad()
def test_a_weight_that_was_trained_to_its_size_does_not_hide_another() -> None:
    module = deepcopy(twin().module)
    scaled, trained = "model.layers.3.self_attn.o_proj", "model.layers.1.mlp.up_proj"
    module.get_submodule(scaled).get_parameter("weight").mul_(8)
    stream = sonde.read(replace(twin(), module=module), list(TEXTS))
    assert isinstance(stream, LiveStream)
    small = small_batches(stream.model, stream.inputs, range(len(TEXTS)), 14)
    tried = resized_weights(stream, evidence_of(stream), small, {trained: 8.0, scaled: 8.0})
    assert tried is not None
    assert tried.paths == (scaled,)
    assert float(tried.trial.after.mean()) > float(tried.trial.before.mean()) + 1


def test_the_gain_of_a_norm_is_compared_with_those_of_the_other_blocks() -> None:
    parts = [nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)) for _ in range(5)]
    net = nn.Sequential(*parts).eval().requires_grad_(False)
    stream = tensors(net, torch.randn(16, 8, generator=torch.Generator().manual_seed(0)))
    for factor, level in ((1.5, None), (1 / 3.5, "note"), (3.5, "note"), (6.0, "warning")):
        net.get_submodule("3.1").get_parameter("weight").fill_(factor)
        check = SND020().check(
            evidence_of(stream).having({find_fresh_layers: fresh_layers(stream, 0)})
        )
        assert (check.finding.level if check.finding else None) == level
    assert check.finding is not None
    assert (check.finding.sites, check.finding.figure.value) == (("3.1",), pytest.approx(6))


@pytest.mark.slow
def test_siblings_of_one_size_are_clear_and_few_are_not_judged() -> None:
    for factor in (1.0, 2.0):
        assert_clear(ended(factor))
    assert ended(10.0, depth=3).state == "not_applicable"
    assert SND020().check(arrays.evidence_of(torch.randn(40, 3))).state == "not_applicable"


def test_a_small_budget_cuts_texts_before_it_leaves_any_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream, shapes = counting(Counter((1.0, 1.0)).eval()), list[tuple[int, ...]]()
    outlier = weight_sizes.SizeOutlier("lm_head", 2.0, 5)
    monkeypatch.setattr(weight_sizes, "size_outliers", lambda *_: [outlier])
    budget = TrialBudget(lambda: (ForwardCost(0.0, 1.0), 500.0))
    known = {find_fresh_layers: fresh_layers(stream, 0)}
    evidence = replace(evidence_of(stream).having(known), budget=budget)
    stream.model.module.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    weight_sizes.resized(stream, evidence)
    assert shapes[-2:] == [(16, 16)] * 2
