"""Several new outputs at once: formulas, limits, protected inputs, and several layers."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from edit.fact_model import FACTS, tiny
from edit.test_null_space import normal
from edit.test_rank_one_edit import LAYER, SITE, delta
from sonde.core import InputError, ShapeError, StateError
from sonde.edit import BatchEdit, NullSpace, RankOneEdit, SecondMoment
from sonde.edit._facts import prompts, read_means
from sonde.edit._writing import least_update

BLOCK = "model.layers.1:out"
LAYERS = ("layers.0.mlp.down_proj", "layers.1.mlp.down_proj")


@pytest.mark.truth("R K' (w C + K K')^-1 and R (K' C^-1 K)^-1 K' C^-1, inverted as they stand")
def test_the_two_formulas():
    keys, residual = normal(6, 3, seed=1), normal(4, 3, seed=2)
    moment = SecondMoment().fit(normal(40, 6))
    c, reach = moment.matrix, moment.solve(keys)
    want = residual @ keys.T @ (2.5 * c + keys @ keys.T).inverse()
    torch.testing.assert_close(delta(least_update(residual, keys, reach, 2.5)), want)
    want = residual @ (keys.T @ c.inverse() @ keys).inverse() @ keys.T @ c.inverse()
    equal = delta(least_update(residual, keys, reach))
    torch.testing.assert_close(equal, want)
    torch.testing.assert_close(equal @ keys, residual, rtol=1e-8, atol=1e-8)
    nearly = delta(least_update(residual, keys, reach, 1e-9))
    torch.testing.assert_close(nearly, equal, rtol=1e-6, atol=1e-6)


@pytest.mark.truth("R K' P (K_p K_p' P + K K' P + I)^-1 of the paper, inverted as it stands")
def test_the_null_space_formula():
    protected = normal(50, 3) @ normal(3, 8, seed=3)
    keys, old, residual = normal(8, 2, seed=1), normal(8, 2, seed=2), normal(4, 2, seed=4)
    space = NullSpace().fit(protected)
    p = space.basis @ space.basis.T
    want = residual @ keys.T @ p @ (old @ old.T @ p + keys @ keys.T @ p + torch.eye(8)).inverse()
    every = torch.cat([keys, old], 1)
    wanted = torch.cat([residual, torch.zeros(4, 2).double()], 1)
    found = delta(least_update(wanted, every, space.project(every), 1.0))
    torch.testing.assert_close(found, want)
    assert float((protected @ found.T).abs().max()) < 1e-6


@pytest.mark.truth("states at the last block, read from the old and the folded model")
def test_the_layers_share_the_shift():
    model = tiny()
    moments = {
        SITE: SecondMoment().fit(normal(99, 24)),
        SITE.replace("0", "1"): SecondMoment().fit(normal(99, 24)),
    }
    shifts = normal(3, 16) * 0.1
    texts = prompts(model, FACTS, ("",))

    def moved(layers, **how):
        edit = BatchEdit(FACTS, layers, how="equal", prefixes=("",), shifts=shifts, **how)
        new = edit.plan(model, moments).fold(model)
        old, found = (read_means(m, texts, [BLOCK])[0] for m in (model.module, new))
        return found - old

    torch.testing.assert_close(moved(LAYERS), shifts, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(moved(LAYERS[1:]), shifts, rtol=1e-3, atol=1e-4)
    edit = BatchEdit(FACTS, LAYERS, prefixes=("",), shifts=shifts, weight=1e6)
    barely = edit.plan(model, moments).fold(model)
    old, found = (read_means(m, texts, [BLOCK])[0] for m in (model.module, barely))
    assert float((found - old).norm() / shifts.norm()) < 0.1


@pytest.mark.truth("states at the last block, read from the old and the folded model")
def test_missed_is_the_share_of_the_shift_that_the_worst_fact_lacks():
    model, shifts = tiny(), normal(3, 16) * 0.1
    texts = prompts(model, FACTS, ("",))
    moment, found = SecondMoment().fit(normal(99, 24)), []
    for weight in (0.003, 0.3):
        edit = BatchEdit(FACTS, LAYERS[1:], prefixes=("",), shifts=shifts, weight=weight)
        plan = edit.plan(model, moment)
        modules = (model.module, plan.fold(model))
        old, new = (read_means(m, texts, [BLOCK])[0] for m in modules)
        lacks = (new - old - shifts).norm(dim=1) / shifts.norm(dim=1)
        found.append(plan.figures["missed"])
        assert found[-1] == pytest.approx(float(lacks.max()), rel=1e-3)
    assert found[0] < 0.4 < found[1]


def test_later_edits_keep_earlier_ones():
    model = tiny()
    moment, space = SecondMoment().fit(normal(99, 24)), NullSpace(tolerance=1.0).fit(normal(99, 24))
    cases: list[tuple[Any, Any, float]] = [("equal", moment, 1e-4), ("null_space", space, 0.5)]
    for how, fitted, bound in cases:
        first = BatchEdit(FACTS[:1], [LAYER], how=how, prefixes=("",), shifts=normal(1, 16))
        once = replace(model, module=first.plan(model, fitted).fold(model))
        texts = prompts(model, FACTS[:1], ("",))
        was = read_means(once.module, texts, [f"{SITE}:out"])[0]
        drift = {}
        for kept in ((), FACTS[:1]):
            second = BatchEdit(
                FACTS[1:], [LAYER], how=how, kept=kept, prefixes=("",), shifts=normal(2, 16) * 5
            )
            twice = second.plan(once, fitted).fold(once)
            drift[kept] = float((read_means(twice, texts, [f"{SITE}:out"])[0] - was).norm())
        assert drift[FACTS[:1]] < bound * drift[()], how


def test_one_fact_at_weight_zero_is_the_edit_of_rank_one():
    model, moment = tiny(), SecondMoment().fit(normal(99, 24))
    shift = normal(1, 16)
    one = RankOneEdit(FACTS[0], LAYER, shift=shift[0]).plan(model, moment)
    many = BatchEdit(FACTS[:1], [LAYER], weight=1e-12, shifts=shift).plan(model, moment)
    name = f"{SITE}.weight"
    torch.testing.assert_close(delta(many.changes[name]), delta(one.changes[name]))


def test_the_search_of_a_batch_is_that_of_each_fact():
    model, moment = tiny(), SecondMoment().fit(normal(99, 24))
    several = BatchEdit(FACTS, [LAYER], steps=3, prefixes=("",)).plan(model, moment)
    alone = [
        BatchEdit([fact], [LAYER], steps=3, prefixes=("",)).plan(model, moment).figures
        for fact in FACTS
    ]
    mean = sum(figures["nats_searched"] for figures in alone) / 3
    assert several.figures["nats_searched"] == pytest.approx(mean, abs=1e-4)
    assert several.figures["nats_searched"] > several.figures["nats_before"]


def test_bad_input():
    model = tiny()
    with pytest.raises(InputError, match="each prompt once, got 'tom likes ' twice"):
        BatchEdit(FACTS, [LAYER], kept=FACTS[:1])
    with pytest.raises(InputError, match="expected facts, layers and prefixes, got 0, 1"):
        BatchEdit([], [LAYER])
    moment = SecondMoment().fit(normal(99, 24))
    with pytest.raises(InputError, match=r"NullSpace fitted at .*, got SecondMomentResult"):
        BatchEdit(FACTS, [LAYER], how="null_space", steps=0).plan(model, moment)
    with pytest.raises(ShapeError, match=r"shifts of shape \(3, 16\), got \(2, 16\)"):
        BatchEdit(FACTS, [LAYER], shifts=normal(2, 16)).plan(model, moment)
    full = NullSpace().fit(normal(99, 24))
    with pytest.raises(StateError, match="span all 24 directions"):
        BatchEdit(FACTS, [LAYER], how="null_space", shifts=normal(3, 16)).plan(model, full)
