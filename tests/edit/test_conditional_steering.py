import itertools

import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn

import sonde
from models import llama
from sonde.core import Add, InputError, ShapeError
from sonde.edit import ConditionalSteering
from sonde.edit.conditional_steering import best_threshold


def planted(n=120, dim=5, shift=6.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    label = torch.arange(n) % 2
    x[:, 1] += 4.0
    x[label == 1, 0] += shift
    return x, label


@pytest.mark.essential
@pytest.mark.truth("sklearn f1_score at every threshold between two scores")
def test_threshold_has_the_highest_f1_of_all():
    generator = torch.Generator().manual_seed(0)
    for trial in range(20):
        score = torch.randint(0, 12, (25,), generator=generator).double() / 4
        holds = torch.rand(25, generator=generator) < 0.1 + 0.04 * trial
        holds[0] = True
        levels = score.unique()
        middles = [float(levels[0]) - 1, *((levels[1:] + levels[:-1]) / 2).tolist()]
        want = max(f1_score(holds, score > middle) for middle in middles)
        threshold, f1 = best_threshold(score, holds)
        assert f1 == pytest.approx(want)
        assert f1_score(holds, score > threshold) == pytest.approx(want)


@pytest.mark.truth("cosines with the difference of means, written out")
def test_a_planted_condition_is_told_apart():
    x, label = planted()
    scorer = ConditionalSteering().fit(x, label)
    gap = x[label == 1].mean(0) - x[label == 0].mean(0)
    want = torch.nn.functional.cosine_similarity(x, gap[None], dim=1)
    torch.testing.assert_close(scorer.score(x), want)
    fresh, own = planted(seed=1)
    assert scorer.value > 0.97
    assert f1_score(own, scorer.holds(fresh)) > 0.97
    assert scorer.share == pytest.approx(0.5, abs=0.03)
    assert scorer.holds(torch.zeros(1, 5)).tolist() == [False]


def generated(model, prompts, gate, edit, **how):
    """Continue prompts in one padded batch, steered through a gate."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    with sonde.editing(model, edit, "model.layers.1", gate=gate):
        out = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, **how)
    return [row[width:].tolist() for row in out]


@pytest.mark.slow
def test_only_prompts_that_meet_the_condition_are_steered_whatever_stands_beside_them():
    model = llama()
    prompts = [[5, 9, 11, 7], [30, 31, 5], [44, 45, 46, 47, 48, 49], [8, 3]]
    holds = [1, 0, 1, 0]

    def state(prompt):
        with sonde.Tap(model, "model.layers.0", reducer="mean") as tap:
            model(torch.tensor([prompt]))
        return tap.rows["model.layers.0:out"][0]

    rows = torch.stack([state(p) for p in prompts])
    scorer = ConditionalSteering().fit(rows, holds)
    assert scorer.value == 1.0
    push = torch.randn(32, generator=torch.Generator().manual_seed(0))
    edit, nothing = Add(push, 10.0), Add(push, 0.0)
    gate = scorer.gate("model.layers.0")
    plain = [generated(model, [p], None, nothing)[0] for p in prompts]
    steered = [generated(model, [p], None, edit)[0] for p in prompts]
    assert all(a != b for a, b in zip(plain, steered, strict=True))
    want = [s if h else p for p, s, h in zip(plain, steered, holds, strict=True)]
    for size in (1, 2, 4):
        for chosen in itertools.combinations(range(4), size):
            found = generated(model, [prompts[i] for i in chosen], gate, edit)
            assert found == [want[i] for i in chosen]


def test_rows_outside_the_condition_keep_every_bit():
    x, label = planted()
    scorer = ConditionalSteering().fit(x, label)
    net = nn.Sequential(nn.Identity(), nn.Identity())
    edit = Add(torch.ones(5), 3.0)
    with sonde.editing(net, edit, "1", gate=scorer.gate("0")):
        found = net(x)
    outside = ~scorer.holds(x)
    assert torch.equal(found[outside], x[outside])
    assert not bool((found[~outside] == x[~outside]).all(1).any())


def test_errors_and_flags():
    x, label = planted()
    with pytest.raises(InputError, match="m of at least 2"):
        ConditionalSteering(m=1)
    with pytest.raises(InputError, match="rows of class 1 and of another class"):
        ConditionalSteering().fit(x, label * 0)
    with pytest.raises(ShapeError, match="expected dim=5"):
        ConditionalSteering().fit(x, label).score(x[:, :2])
    assert "dead" in ConditionalSteering().fit(torch.ones(6, 2), [0, 1] * 3).flags
    assert "sampled" in ConditionalSteering(m=20).fit(x, label).flags
