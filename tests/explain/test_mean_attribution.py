"""Means of attributions over a stream against those of all examples at once."""

import pytest
import torch
from tests.student import student

import models
from sonde.core import InputError, Model
from sonde.data import open_inputs
from sonde.explain import (
    Baseline,
    Deletion,
    GradTimesInput,
    IntegratedGradients,
    MeanAttribution,
    Objective,
    Occlusion,
    Saliency,
)

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(30, 5, generator=DRAW)
ITEMS = [{"x": row} for row in X]
WHY = Objective(target=1)


@pytest.fixture(scope="module")
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))


@pytest.mark.truth("the mean over all examples, explained in one call")
@pytest.mark.parametrize(
    ("method", "site"),
    [
        (IntegratedGradients(8, baseline=Baseline("zero")), "input"),
        (GradTimesInput(), "1"),
        (Saliency(), "input"),
        (Occlusion(baseline=Baseline("zero")), "0"),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, str) else x,
)
def test_batches_give_the_mean_of_all_examples(net, method, site):
    test = Deletion(baseline=Baseline("zero"), n_random=1, steps=4)
    data = open_inputs(Model(net), ITEMS, batch_size=7)
    found = MeanAttribution(method, test).explain(net, data, objective=WHY, site=site)
    whole = method.explain(net, X, objective=WHY, site=site)
    value = torch.as_tensor(whole.value).double()
    torch.testing.assert_close(found.value, value.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.size, value.abs().mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.se, value.std(0) / 30**0.5 * student(30), rtol=1e-5, atol=1e-6)
    judged = test.judge(net, X, whole, objective=Objective("prob", target=1), site=site)
    assert found.faithfulness == pytest.approx(float(judged), abs=1e-5)
    assert judged.null is not None
    assert found.random == pytest.approx(float(judged.null), abs=1e-5)
    assert found.n == 30


@pytest.mark.truth("the sum of each row's entries over its tokens, row by row")
def test_texts_of_several_lengths_have_a_mean_for_each_unit():
    texts = [torch.randint(3, models.VOCABULARY, (n,), generator=DRAW) for n in (4, 4, 6)]
    model, why = models.gpt2(), Objective(target=5)
    data = [{"input_ids": ids[None]} for ids in texts]
    method = MeanAttribution(GradTimesInput(), test=None, per="unit")
    found = method.explain(model, data, objective=why, site="transformer.h.1")
    each = [
        torch.as_tensor(
            GradTimesInput().explain(model, ids[None], objective=why, site="transformer.h.1").value
        ).sum((0, 1))
        for ids in texts
    ]
    torch.testing.assert_close(
        torch.as_tensor(found.value).float(), torch.stack(each).mean(0), rtol=1e-4, atol=1e-5
    )
    entries = MeanAttribution(GradTimesInput(), test=None)
    with pytest.raises(InputError, match="per='unit'"):
        entries.explain(model, data, objective=why, site="transformer.h.1")


def test_no_input_is_refused(net):
    with pytest.raises(InputError, match="at least one example"):
        MeanAttribution().explain(net, [])
