"""Attention held inside a pattern: rows by hand, a live model with a mask, padding, sharp heads."""

import pytest
import torch
from torch import nn
from torch.nn.functional import kl_div, log_softmax, scaled_dot_product_attention

import models
import sonde
from sonde.core import EditContext, InputError, Model, ShapeError, Site
from sonde.data import open_inputs
from sonde.edit import LimitAttention
from sonde.run.changing.attention_costs import ALL, pattern_costs

SITE, N = Site("0:probs"), 9
GAP = (torch.arange(N)[:, None] - torch.arange(N)).abs()


class Look(nn.Module):
    """One attention whose scores fall or rise with the distance."""

    def __init__(self, slope):
        super().__init__()
        self.maps = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.slope, self.seen = slope, torch.ones(N, N, dtype=torch.bool)

    def forward(self, x):
        q, k, v = (m(x).unflatten(2, (2, 2)).transpose(1, 2) for m in self.maps)
        bias = (self.slope * GAP).to(x).masked_fill(~self.seen, -torch.inf)
        made = scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return x + 2.0 * made.transpose(1, 2).flatten(2)


@pytest.fixture
def net():
    torch.manual_seed(1)
    return nn.Sequential(Look(-6.0), Look(1.0), nn.Flatten(), nn.Linear(4 * N, 3)).double()


@pytest.mark.truth("a softmax of scores that a mask hides")
def test_a_limit_is_a_mask_before_the_softmax():
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(2, N, 3, N, generator=draw, dtype=torch.float64)
    probs, near = scores.softmax(-1), (GAP <= 2)[:, None]
    want = scores.masked_fill(~near, -torch.inf).softmax(-1)
    found = LimitAttention("window:2").apply(probs.flatten(2), SITE, EditContext())
    torch.testing.assert_close(found, want.flatten(2), rtol=1e-12, atol=1e-14)
    half = LimitAttention("window:2", strength=0.3).apply(probs.flatten(2), SITE, EditContext())
    mixed = 0.7 * probs + 0.3 * probs * near
    torch.testing.assert_close(half, (mixed / mixed.sum(3, keepdim=True)).flatten(2))
    share = LimitAttention("window:2").outside(probs.flatten(2), SITE, EditContext())
    torch.testing.assert_close(share, (probs * ~near).sum((2, 3)) / 3)


@pytest.mark.truth("a loop over the patches of a grid behind a class token")
def test_a_grid_starts_behind_its_prefix():
    probs = torch.full((1, 7, 7), 1 / 7)
    edit = LimitAttention("axial:row", grid=(2, 3), prefix=1)
    found = edit.apply(probs, SITE, EditContext())[0] > 0
    for i in range(7):
        for j in range(7):
            same = i == 0 or j == 0 or (i - 1) // 3 == (j - 1) // 3
            assert bool(found[i, j]) == same, (i, j)


@pytest.mark.truth("the same model with the mask in its kernel; kl_div of torch")
@torch.no_grad()
def test_the_cost_of_a_layer_is_that_of_a_mask_in_its_kernel(net):
    x = torch.randn(20, N, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    plain, wanted = log_softmax(net(x), 1), {}
    for which in ((0,), (1,), (0, 1)):
        for i in which:
            net[i].seen = GAP <= 2
        new = log_softmax(net(x), 1)
        wanted[which] = float(kl_div(new, plain, log_target=True, reduction="batchmean"))
        for i in which:
            net[i].seen = GAP <= N
    model = Model(net)
    inputs = open_inputs(model, [{"x": row, "label": i % 3} for i, row in enumerate(x)])
    found = pattern_costs(
        model, inputs, LimitAttention("window:2"), ["0:probs", "1:probs"], progress=False
    )
    assert [cost.site for cost in found] == ["0:probs", "1:probs", ALL]
    costs = [cost.kl.value for cost in found]
    assert costs == pytest.approx(list(wanted.values()), rel=1e-5, abs=1e-7)
    assert [cost.is_far(0.01) for cost in found] == [False, True, True]
    assert found[0].outside < 0.01 < 0.2 < found[1].outside


def test_padding_stays_and_left_padding_moves_the_blocks():
    probs = torch.full((2, 4, 4), 0.25)
    mask = torch.tensor([[True] * 4, [False, True, True, True]])
    position = (mask.long().cumsum(1) - 1).clamp(min=0)
    found = LimitAttention("block:2").apply(probs, SITE, EditContext(mask, position))
    assert (found[0] > 0).long().tolist() == [[1, 1, 0, 0]] * 2 + [[0, 0, 1, 1]] * 2
    assert torch.equal(found[1, 0], probs[1, 0])
    assert (found[1, 1:] > 0).long().tolist() == [[0, 1, 1, 0]] * 2 + [[0, 0, 0, 1]]


def test_generation_with_a_cache_is_that_without():
    model = models.gpt2().double().eval()
    ids = torch.randint(3, 30, (2, 6), generator=torch.Generator().manual_seed(1))
    found = []
    for use_cache in (True, False):
        edit = LimitAttention("window:2", n_heads=model.config.n_head)
        with sonde.editing(model, edit, "h.1.attn:probs"):
            found.append(
                model.generate(
                    ids,
                    use_cache=use_cache,
                    max_new_tokens=4,
                    do_sample=False,
                    output_logits=True,
                    return_dict_in_generate=True,
                    pad_token_id=0,
                    eos_token_id=None,
                )
            )
    for a, b in zip(found[0].logits, found[1].logits, strict=True):
        torch.testing.assert_close(a, b)


def test_a_head_too_sharp_for_its_type_looks_at_itself():
    probs = torch.zeros(1, 4, 4)
    probs[0, :, 0] = 1.0
    probs[0, 3, 3] = 1e-42
    found = LimitAttention("window:1").apply(probs, SITE, EditContext())
    assert found[0].tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    for n_queries in (1, 2):  # the others are in a cache
        late = LimitAttention("window:1", n_heads=1)
        assert torch.equal(
            late.apply(probs[:, -n_queries:], SITE, EditContext()), found[:, -n_queries:]
        )


def test_random_groups_share_the_real_tokens_out_evenly():
    mask = torch.arange(N) >= torch.tensor([[0], [2]])
    probs = (mask[:, None] & mask[:, :, None]).double()
    probs = probs / probs.sum(2, keepdim=True).clamp(min=1)
    context = EditContext(mask, (mask.long().cumsum(1) - 1).clamp(min=0))
    found = LimitAttention("random:0.5").apply(probs, SITE, context) > 0
    assert sorted(found[0].sum(1).tolist()) == [4] * 4 + [5] * 5
    assert sorted(found[1, 2:].sum(1).tolist()) == [3] * 3 + [4] * 4


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: LimitAttention("near:3"),
            InputError,
            "an attention among all, axial",
        ),
        (lambda: LimitAttention("histogram:3"), InputError, "histogram:3 sorts values"),
        (lambda: LimitAttention("axial"), InputError, r"grid=\(height, width\) for axial"),
        (lambda: LimitAttention("all", strength=2.0), InputError, r"strength in \[0, 1\]"),
        (
            lambda: LimitAttention("all").apply(torch.ones(1, 3, 8), SITE, EditContext()),
            InputError,
            "equally many keys and queries at 0:probs:out, got a row of 8 for 3 queries",
        ),
        (
            lambda: LimitAttention("all", n_heads=3).apply(
                torch.ones(1, 3, 8), SITE, EditContext()
            ),
            ShapeError,
            "3 heads x keys",
        ),
        (
            lambda: LimitAttention("axial", grid=(2, 3)).apply(
                torch.ones(1, 4, 4), SITE, EditContext()
            ),
            InputError,
            "expected 6 tokens for the grid 2 x 3, got 4",
        ),
    ],
)
def test_what_is_wrong_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()
