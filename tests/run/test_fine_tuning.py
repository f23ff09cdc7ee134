"""Fine-tuning with losses at sites, beside the same training without them."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import Embedding, Linear

import sonde
from sonde.core import InputError, SondeWarning, StateError
from sonde.data import open_inputs
from sonde.layers import ScaledSkip, StateGraph
from sonde.measure import rate_reduction
from sonde.report.train import _is_change
from sonde.run.training.arms import Recipe, _epoch, scoped, train_arm
from sonde.run.training.figures import (
    TaskFigures,
    compared,
    mcnemar,
    student,
    task_figures,
    term_values,
    thinned,
)
from sonde.run.training.layers import layer_figures
from sonde.run.training.losses import attached, listed, weights_of
from sonde.run.training.low_rank import (
    adapter_parameters,
    merge_adapters,
    rank_in,
    with_adapters,
)
from sonde.tap import live_stream
from sonde.train import Align, Contrast, RateReduction, Separate

RECIPE = Recipe(epochs=2, rate=2e-3, weight=0.05, seed=3)
SITE = "blocks.1"


@pytest.fixture(scope="module")
def digits():
    model = sonde.load("sonde:digits", device="cpu")
    return model, open_inputs(model, "sonde:digits/train", limit=50, batch_size=16)


def trained(digits, losses: Any = None, **more):
    model, examples = digits
    given: Any = {SITE: RateReduction()} if losses is None else losses
    return train_arm(model, examples, given, RECIPE, progress=False, **more)


@pytest.mark.slow
@pytest.mark.truth("a training loop of plain torch")
def test_the_arm_without_losses_is_a_plain_training(digits):
    _model, examples = digits
    found, loss = trained(digits, {}), torch.zeros(())
    module = sonde.load("sonde:digits", device="cpu").module.eval()
    adam = torch.optim.Adam(module.parameters(), lr=RECIPE.rate)
    for epoch in range(2):
        for batch in _epoch(examples, RECIPE.seed, epoch):
            logits = module(*batch.args, **batch.kwargs).logits
            loss = torch.nn.functional.cross_entropy(logits, batch.label)
            adam.zero_grad()
            loss.backward()
            adam.step()
    for name, x in module.state_dict().items():
        torch.testing.assert_close(found.module.state_dict()[name], x, rtol=1e-4, atol=1e-6)
    assert found.curve[-1]["task"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert len(found.curve) == 8
    assert set(found.curve[0]) == {"step", "task"}


@pytest.mark.slow
@pytest.mark.truth("sonde.measure.rate_reduction of the rows")
def test_a_loss_falls_and_is_the_measure_of_the_same_name(digits):
    model, _examples = digits
    with_loss, without = trained(digits), trained(digits, {})
    held = open_inputs(model, "sonde:digits/test", limit=60)
    label = torch.cat([b.label for b in held.batches(0, len(held))])
    values = []
    for arm in (with_loss, without):
        (value,) = term_values(model, arm.module, held, with_loss.losses).values()
        stream = live_stream(replace(model, module=arm.module), held, [SITE], "mean", logits=False)
        rows = torch.cat([b.rows[stream.schema[0].key] for b in stream.batches(0, len(stream))])
        assert -value == pytest.approx(rate_reduction(rows, label, eps2=0.5).value, rel=1e-4)
        values.append(value)
    assert values[0] < values[1]
    assert -1 <= with_loss.curve[0]["conflict"] <= 1
    assert "conflict" not in with_loss.curve[1]


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on_with_the_same_bits(digits, tmp_path, monkeypatch):
    whole = trained(digits)
    n_calls = iter(range(100))

    def stop(_):
        if next(n_calls) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("sonde.run.training.arms._Keeper.tick", stop)
        with pytest.raises(KeyboardInterrupt):
            trained(digits, checkpoint=tmp_path / "run" / "with.pt")
    again = trained(digits, checkpoint=tmp_path / "run" / "with.pt")
    assert again.curve == whole.curve
    for name, x in whole.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], x), name
    with pytest.raises(
        StateError,
        match=r"another training run, whose site of the loss RateReduction 1 differs.*--fresh",
    ):
        trained(digits, {"blocks.0": RateReduction()}, checkpoint=tmp_path / "run" / "with.pt")


@pytest.mark.slow
def test_a_checkpoint_goes_on_in_its_own_training_alone(digits, tmp_path):
    (model, examples), path = digits, tmp_path / "with.pt"
    other = replace(model, module=copy.deepcopy(model.module))
    with torch.no_grad():
        other.module.classifier.bias[3] += 0.01
    pair = (SITE, f"teacher:{SITE}")
    given: Any = {
        "model": model,
        "examples": open_inputs(model, "sonde:digits/train", limit=20, batch_size=16),
        "losses": {pair: Align("mse")},
        "recipe": replace(RECIPE, epochs=1),
        "teacher": model,
    }
    train_arm(**given, checkpoint=path, progress=False)
    again = train_arm(**given, checkpoint=path, progress=False)
    assert len(again.curve) == 2
    for name, value, told in (
        ("model", other, "weights of the model"),
        ("teacher", other, "weights of the teacher"),
        ("teacher", "ema", "kind of the teacher"),
        ("losses", {pair: Align("smooth_l1")}, "distance of the loss Align 1"),
        ("losses", {pair: Align("mse", temperature=2.0)}, "temperature of the loss Align 1"),
        ("losses", {pair: Separate()}, "kind of the loss Align 1"),
        ("recipe", replace(RECIPE, epochs=1, weight=0.06), "weight of the settings"),
        ("recipe", replace(RECIPE, epochs=1, rate=1e-3), "rate of the settings"),
        ("examples", replace(given["examples"], batch_size=8), "batch_size of the data"),
        ("examples", examples, "fingerprint of the data"),
    ):
        with pytest.raises(StateError, match=f"whose {told} differs. Run with --fresh"):
            train_arm(**(given | {name: value}), checkpoint=path, progress=False)


@pytest.mark.truth("names of parameters")
@pytest.mark.parametrize(
    ("scope", "inside", "outside"),
    [
        ("norms", "vit.layers.0.layernorm_before.weight", "vit.layers.0.attention.q_proj.weight"),
        ("top:1", "classifier.weight", "vit.layers.2.layernorm_before.weight"),
        ("last:11", "classifier.weight", "vit.layernorm.bias"),
        ("last:10", "classifier.bias", "classifier.weight"),
        ("all", "vit.embeddings.cls_token", None),
    ],
)
def test_a_scope_moves_its_parameters_alone(digits, scope, inside, outside):
    module = sonde.load("sonde:digits", device="cpu").module
    scoped(module, scope)
    moving = {name for name, p in module.named_parameters() if p.requires_grad}
    assert inside in moving
    assert outside not in moving
    with pytest.raises(InputError, match="low-rank:N, with N of at least 1, got 'top:0'"):
        scoped(module, "top:0")


@pytest.mark.slow
@pytest.mark.truth("rank of the difference of the weights")
def test_adapters_change_linear_layers_by_their_rank_and_nothing_else(digits):
    recipe = replace(RECIPE, scope="low-rank:3")
    model, examples = digits
    whole = train_arm(model, examples, {}, recipe, progress=False)
    before, after = model.module.state_dict(), whole.module.state_dict()
    assert after.keys() == before.keys()
    layers = [n for n, part in model.module.named_modules() if isinstance(part, torch.nn.Linear)]
    for name, x in before.items():
        if name.removesuffix(".weight") in layers:
            assert torch.linalg.matrix_rank((after[name] - x).double(), rtol=1e-4) == 3, name
        else:
            assert torch.equal(after[name], x), name
    modules = model.module, whole.module
    told = [compared(task_figures(model, m, examples), None, "loss")["value"] for m in modules]
    assert told[1] < 0.9 * told[0]


def test_adapters_stay_away_from_weights_that_other_layers_read():
    embed, head = Embedding(7, 4), Linear(4, 7, bias=False)
    head.weight = embed.weight
    mix = torch.nn.MultiheadAttention(4, 2)
    tied = torch.nn.ModuleDict({"embed": embed, "up": Linear(4, 4), "mix": mix, "head": head})
    with_adapters(tied, 2, seed=0)
    assert {name.partition(".")[0] for name in adapter_parameters(tied)} == {"up"}
    merge_adapters(tied)
    assert type(tied["up"]) is Linear
    for scope in ("low-rank", "low-rank:0", "low-rank:2+low-rank:3"):
        with pytest.raises(InputError, match="low-rank:N with N of at least 1"):
            rank_in(scope)
    with pytest.raises(InputError, match="has no linear layer"):
        with_adapters(torch.nn.Sequential(torch.nn.ReLU()), 2, seed=0)


@pytest.mark.truth("accuracy and cross-entropy by torch")
def test_figures_of_the_task(digits):
    model, examples = digits
    found = task_figures(model, model.module, examples)
    batches = list(examples.batches(0, len(examples)))
    with torch.no_grad():
        logits = torch.cat([model.module(*b.args, **b.kwargs).logits for b in batches])
    label = torch.cat([b.label for b in batches])
    right = float((logits.argmax(1) == label).double().mean())
    loss = float(torch.nn.functional.cross_entropy(logits.double(), label))
    assert compared(found, None, "right")["value"] == pytest.approx(right)
    assert compared(found, None, "loss")["value"] == pytest.approx(loss, rel=1e-5)
    same = compared(found, found, "loss")
    assert (same["value"], same["low"], same["high"]) == (0, 0, 0)


@pytest.mark.truth("scipy.stats: t interval, exact binomial test")
def test_gains_over_seeds_and_within_one():
    values = [0.03, -0.01, 0.025, 0.04]
    found = student(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))
    assert found["detects"] > found["high"] - found["value"]
    assert student([0.01, 0.01], grain=0.01)["low"] < 0 < student([0.01, 0.01])["low"]
    n = torch.ones(9)
    one = TaskFigures(n, torch.tensor([1.0, 1, 1, 1, 0, 1, 0, 1, 1]), n)
    other = TaskFigures(n, torch.tensor([0.0, 0, 0, 0, 1, 1, 0, 1, 1]), n)
    told = mcnemar(one, other)
    assert (told["gained"], told["lost"]) == (4, 1)
    assert told["p"] == pytest.approx(0.375)
    assert mcnemar(one, one)["p"] == 1.0


@pytest.mark.slow
@pytest.mark.truth("the share of draws, by simulation")
def test_verdicts_over_seeds_are_wrong_in_a_twentieth_of_null_pairs():
    draw = torch.Generator().manual_seed(3)
    gaps = 0.4 * torch.randn(4000, 5, generator=draw, dtype=torch.float64)
    told = [student(row) for row in gaps.tolist()]
    wrong = sum(one["low"] > 0 or one["high"] < 0 for one in told) / 4000
    assert wrong == pytest.approx(0.05, abs=0.012)
    size = sum(one["detects"] for one in told) / 4000
    seen = [student((row + size).tolist()) for row in gaps]
    assert sum(one["low"] > 0 for one in seen) / 4000 == pytest.approx(0.8, abs=0.08)


@pytest.mark.truth("exact binomial test: 4 of 4 has p = 0.125, 6 of 6 has p = 0.03")
def test_few_rows_that_changed_are_no_gain_of_one_model():
    for n, is_gain in ((4, False), (6, True)):
        ones = torch.ones(60, dtype=torch.float64)
        one = TaskFigures(ones, ones, ones)
        other = replace(one, right=(torch.arange(60) >= n).double())
        gain = compared(one, other, "right") | mcnemar(one, other)
        assert gain["low"] > 0
        assert _is_change(gain) == is_gain


def test_losses_by_their_words():
    pair = attached("rate_reduction(eps2=.1),align", ["blocks.2"], has_teacher=True)
    assert list(pair) == ["blocks.2", ("blocks.2", "teacher:blocks.2")]
    assert pair["blocks.2"].eps2 == 0.1
    assert list(attached("separate", ["a+b"], has_teacher=False)) == [("a", "b")]
    assert {"align", "rate_reduction"} <= {one.word for one in listed() if one.is_usable}
    for words, sites, message in (
        ("rate", ["a"], "no loss is called 'rate'. Did you mean rate_reduction"),
        ("align", ["a"], "align compares two sites"),
        ("rate_reduction", ["a+b"], "reads one site"),
        ("rate_reduction", ["a", "b"], "one for each of 1 losses, got 2"),
        ("rate_reduction,rate_reduction", ["a"], "two losses read a"),
        ("counter_current", ["a"], "needs inputs, which this command cannot give. Use sonde.train"),
        ("structured_transfer", ["a"], "needs student, teacher, which this command cannot give"),
        ("mixup", ["a"], "needs logits, which this command cannot give"),
        ("scaled_weights", ["a"], "no loss is called 'scaled_weights'"),
        ("input_decoder", ["a+b"], "missing 1 required positional argument: 'width'"),
    ):
        with pytest.raises(InputError, match=message):
            attached(words, sites, has_teacher=False)


@pytest.mark.slow
def test_a_batch_of_one_row_trains_the_task_alone_and_is_counted(digits):
    model, _ = digits
    examples = open_inputs(model, "sonde:digits/train", limit=33, batch_size=16)
    losses: Any = {"blocks.0": RateReduction(), "blocks.1": Contrast()}
    recipe = replace(RECIPE, weight=(0.2, 0.5))
    with pytest.warns(SondeWarning, match="is left out of step 2"):
        arm = train_arm(model, examples, losses, recipe, progress=False)
    assert len(arm.curve) == 6
    assert len(arm.left_out) == 2
    assert set(arm.left_out.values()) == {2}
    assert [len(row) for row in arm.curve] == [5, 4, 2, 5, 4, 2]


def test_a_weight_for_each_loss():
    assert weights_of("0.1,0.5", 2) == (0.1, 0.5)
    assert weights_of("3", 2) == 3.0
    for words, told in (("a", "expected a number"), ("1,inf", "finite"), ("1,2,3", "each of 2")):
        with pytest.raises(InputError, match=told):
            weights_of(words, 2)


def test_a_thin_curve_keeps_means():
    curve = [{"step": float(i), "task": float(i % 2)} for i in range(10)]
    assert thinned(curve, 5) == [{"step": 2 * i + 0.5, "task": 0.5} for i in range(5)]


@pytest.mark.truth("the layer called by hand on the states of its site, rearranged")
@pytest.mark.slow
@pytest.mark.parametrize("layer", [StateGraph(64), ScaledSkip(how="learned", dim=64)])
def test_the_change_of_a_layer_is_measured_in_any_order_of_axes(digits, layer):
    model, held = digits[0], digits[1].first(6)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_(generator=torch.Generator().manual_seed(3))
    new = sonde.inserted(model, {"vit.layers.1": layer})
    (found,) = layer_figures(new, new.module, held)
    with sonde.Tap(model, ["vit.layers.1"]) as tap:
        for batch in held.batches(0, 6):
            model.module(*batch.args, **batch.kwargs)
    with torch.no_grad():
        x = tap.rows["vit.layers.1:out"].movedim(-1, layer.features_axis)
        change = layer(x) - x
    if isinstance(layer, StateGraph):  # read by its class token
        change, x = change[:, 0], x[:, 0]
    share = float(change.square().sum() / x.square().sum()) ** 0.5
    assert found.moved == pytest.approx(share, rel=1e-4)
