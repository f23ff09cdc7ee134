"""One new output of a linear layer: closed forms, a generic solver, and a model of two blocks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import sonde
from edit.fact_model import FACTS, tiny
from edit.test_null_space import normal
from sonde.core import InputError, Model
from sonde.edit import Fact, RankOneEdit, SecondMoment, log_probability
from sonde.edit._facts import prompts, read_means
from sonde.edit._writing import least_update

LAYER = "layers.0.mlp.down_proj"
SITE = f"model.{LAYER}"


def delta(change):
    return change.left @ change.right


@pytest.mark.truth("scipy's minimum of tr(D C D') under D k = r, on a 4 x 6 memory")
def test_a_generic_solver_finds_no_smaller_update():
    keys, key, residual = normal(40, 6), normal(6, 1, seed=1), normal(4, 1, seed=2)
    moment = SecondMoment().fit(keys)
    found = delta(least_update(residual, key, moment.solve(key)))
    torch.testing.assert_close(found @ key, residual, rtol=1e-10, atol=1e-10)
    c, k, r = moment.matrix.numpy(), key.numpy()[:, 0], residual.numpy()[:, 0]
    solved = minimize(
        lambda d: np.trace(d.reshape(4, 6) @ c @ d.reshape(4, 6).T),
        np.zeros(24),
        jac=lambda d: (2 * d.reshape(4, 6) @ c).ravel(),
        constraints=[{"type": "eq", "fun": lambda d: d.reshape(4, 6) @ k - r}],
        tol=1e-14,
    )
    np.testing.assert_allclose(found.numpy(), solved.x.reshape(4, 6), atol=1e-6)


@pytest.mark.truth("k' C^-1 k* = 0 and the projection of C = I, by hand")
def test_other_inputs_and_the_plain_metric():
    keys, key, residual = normal(40, 6), normal(6, 1, seed=1), normal(4, 1, seed=2)
    reach = SecondMoment().fit(keys).solve(key)
    other = normal(6, 1, seed=3)
    other -= reach * (reach.T @ other) / (reach.T @ reach)
    found = delta(least_update(residual, key, reach))
    assert float((found @ other).abs().max()) < 1e-13
    plain = delta(least_update(residual, key, key))
    torch.testing.assert_close(plain, residual @ key.T / key.square().sum())


@pytest.mark.essential
@pytest.mark.truth("outputs of the layer, read from the old and the folded model")
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_folded_layer_gives_the_new_output(kind):
    model = tiny(kind)
    layer = {"llama": SITE, "gpt2": "transformer.h.0.mlp.c_proj"}[kind]
    stream = sonde.read(
        model, ["tom and ann like tea and rye"] * 2, sites=[f"{layer}:in"], reducer="tokens"
    )
    fitted = sonde.fit(SecondMoment(ridge=0.01), stream, progress=False)
    shift = normal(16)
    edit = RankOneEdit(FACTS[0], layer, prefixes=("", "Oh, "), shift=shift)
    plan = edit.plan(model, fitted)
    new = plan.fold(model)
    texts = prompts(model, FACTS[:1], ("", "Oh, "))
    sites = [f"{layer}:in", f"{layer}:out"]
    (key, old), (same, found) = (read_means(m, texts, sites) for m in (model.module, new))
    torch.testing.assert_close(same, key)
    torch.testing.assert_close(found - old, shift[None], rtol=1e-4, atol=1e-4)
    assert list(plan.changes) == [f"{layer}.weight"]
    same_weights = zip(model.module.parameters(), tiny(kind).module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same_weights)


@pytest.mark.slow
def test_the_search_makes_the_target_likely_and_stays_within_its_length():
    model = tiny()
    moment = SecondMoment().fit(normal(100, 24))
    fact = Fact("so says tom", "tom", "!")
    edit = RankOneEdit(fact, LAYER, largest=8.0)
    plan = edit.plan(model, moment)
    new = replace(model, module=plan.fold(model))
    before, after = log_probability(model, [fact]), log_probability(new, [fact])
    assert float(after - before) > 2.0
    assert plan.figures["nats_after"] == pytest.approx(plan.figures["nats_searched"], abs=1.0)
    assert all(p.requires_grad and p.grad is None for p in model.module.parameters())
    short = replace(edit, largest=0.1).plan(model, moment)
    assert short.figures["nats_searched"] < plan.figures["nats_searched"] - 1.0
    texts, moved = prompts(model, [fact], edit.prefixes), short.fold(model)
    old, found = (read_means(m, texts, [f"{SITE}:out"])[0] for m in (model.module, moved))
    assert float((found - old).norm() / old.norm()) == pytest.approx(0.1, rel=0.02)


@pytest.mark.truth("log_softmax of the logits of one unpadded text at a time")
def test_log_probability_by_hand():
    model = tiny()
    wanted = []
    for fact in FACTS:
        ids = torch.tensor([list((fact.prompt + fact.target).encode())])
        chances = model.module(ids).logits.detach().log_softmax(-1)[0, :-1]
        told = chances[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
        wanted.append(float(told[-len(fact.target) :].mean()))
    np.testing.assert_allclose(log_probability(model, FACTS).numpy(), wanted, rtol=1e-4)


def test_bad_input():
    model = tiny()
    with pytest.raises(InputError, match="expected the subject in the prompt, got subject 'Tim'"):
        Fact("tom likes ", "Tim", "tea")
    with pytest.raises(InputError, match="got an empty text"):
        Fact("tom likes ", "tom", "")
    with pytest.raises(
        InputError,
        match=r"RankOneEdit: expected a linear layer, got model\.layers\.0\.mlp, a .*gate_proj",
    ):
        RankOneEdit(FACTS[0], "layers.0.mlp").plan(model, None)
    with pytest.raises(InputError, match=r"SecondMoment fitted at .*down_proj:in, got NoneType"):
        RankOneEdit(FACTS[0], LAYER, steps=0).plan(model)
    with pytest.raises(
        InputError, match=r"RankOneEdit\.plan: .* with its tokenizer, got a bare module"
    ):
        RankOneEdit(FACTS[0], LAYER).plan(model.module)
    with pytest.raises(InputError, match="causal language model with its tokenizer"):
        RankOneEdit(FACTS[0], LAYER).plan(Model(model.module), None)
