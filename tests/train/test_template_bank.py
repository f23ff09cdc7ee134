"""Nets whose weights are mixes: by loops, nearest mixes, and wider nets."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

import models
from sonde.core import InputError
from sonde.train import TemplateBank


def net(*widths):
    parts = [layer for a, b in pairwise(widths)
             for layer in (nn.Linear(a, b), nn.LayerNorm(b), nn.Tanh())]  # fmt: skip
    return nn.Sequential(*parts[:-2]).double()


def drawn(*widths, seed=3):
    torch.manual_seed(seed)
    made = net(*widths)
    for p in made.parameters():
        nn.init.normal_(p)
    return made


@pytest.mark.truth("the old model's own answers, and sums of templates by loops")
def test_mixes_keep_the_answers_and_share_their_templates():
    old, x = drawn(4, 6, 6, 6, 3), torch.randn(7, 4, dtype=torch.float64)
    rule = TemplateBank(n_templates=3)
    new = rule.of(old)
    torch.testing.assert_close(new(x), old(x))
    assert new[3].bank is new[6].bank
    assert new[0].bank is not new[3].bank
    assert new[3].bank.shape == (3, 6, 6)
    weight = sum(new[3].mix[0, 0, t] * new[3].bank[t] for t in range(3))
    torch.testing.assert_close(weight, old[3].weight)
    torch.testing.assert_close(rule.plain(new)(x), old(x))
    assert type(rule.plain(new)[0]) is nn.Linear
    new(x).square().sum().backward()
    grads = [p.grad for n, p in new.named_parameters() if n.endswith((".bank", ".mix"))]
    assert all(bool(g.abs().amax(tuple(range(g.ndim))[1:]).gt(0).all()) for g in grads)


@pytest.mark.truth("the tail of the singular values of the stacked weights")
def test_too_few_templates_make_the_nearest_mixes():
    old = drawn(5, 5, 5, 5, 5)
    new = TemplateBank(n_templates=2).of(old)
    at = [i for i, layer in enumerate(old) if isinstance(layer, nn.Linear)]
    stack = torch.stack([old[i].weight.detach().flatten() for i in at])
    missed = sum((new[i].weight - old[i].weight).square().sum() for i in at)
    tail = torch.linalg.svdvals(stack)[2:].square().sum()
    torch.testing.assert_close(missed.detach(), tail)


@pytest.mark.truth("the small model's own answers")
def test_copies_without_noise_answer_as_the_small_net():
    old, like = drawn(4, 6, 3), drawn(4, 18, 3, seed=5)
    rule, x = TemplateBank(growth="copy", noise=0.0), torch.randn(7, 4, dtype=torch.float64)
    wide = rule.grown(rule.of(old), like)
    torch.testing.assert_close(wide(x), old(x))
    assert [tuple(p.shape) for p in rule.plain(wide).parameters()] == [
        tuple(p.shape) for p in like.parameters()
    ]


@pytest.mark.truth("angles of coefficients, and blocks of the wide weight by loops")
def test_new_blocks_are_mixes_at_right_angles_to_the_old_one():
    old, like = drawn(4, 6, 6, 3), drawn(4, 12, 18, 6, seed=5)
    rule = TemplateBank(n_templates=5)
    small = rule.of(old)
    wide = rule.grown(small, like)
    mix = wide[3].mix.detach()
    assert mix.shape == (3, 2, 5)
    first = small[3].mix[0, 0].detach()
    torch.testing.assert_close(mix[0, 0], first / 2**0.5)
    flat = mix.flatten(0, 1)
    torch.testing.assert_close(flat.norm(dim=1), (first.norm() / 2**0.5).expand(6))
    angles = flat[:5] @ flat[:5].T
    assert (angles - angles.diagonal().diag()).abs().max() < 1e-12
    assert abs(float(flat[5] @ flat[0])) < 1e-12  # five templates have five directions
    for d in range(3):
        for a in range(2):
            block = sum(mix[d, a, t] * small[3].bank[t] for t in range(5))
            torch.testing.assert_close(wide[3].weight[6 * d : 6 * d + 6, 6 * a : 6 * a + 6], block)
    torch.testing.assert_close(wide[1].weight[6:], small[1].weight)
    again = copy.deepcopy(wide)
    assert again[3].bank is not wide[3].bank


@pytest.mark.slow
def test_tied_weights_stay_and_models_of_transformers_grow():
    model = models.llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    new = TemplateBank(n_templates=16).of(model)
    ids = torch.randint(3, 60, (2, 7))
    with torch.no_grad():
        torch.testing.assert_close(new(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
    assert new.lm_head.weight is new.model.embed_tokens.weight


def test_what_cannot_grow_is_refused():
    rule = TemplateBank()
    with pytest.raises(InputError):
        rule.of(nn.LayerNorm(3))
    with pytest.raises(InputError):
        rule.grown(rule.of(drawn(4, 6, 3)), drawn(4, 10, 3))
    with pytest.raises(InputError):
        TemplateBank(n_templates=1)


def test_weights_that_are_not_finite_are_refused():
    for n_templates in (2, 8):
        net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
        with torch.no_grad():
            net[1].weight[0, 0] = float("nan")
        with pytest.raises(InputError, match=r"expected finite weights, .* in one of 0, 1, 2"):
            TemplateBank(n_templates).of(net)
