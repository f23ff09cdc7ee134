"""Attention inside patterns, against brute force over their definitions and closed forms."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from sonde.core import EditContext, InputError, ShapeError, Site, StateError
from sonde.edit import LimitAttention
from sonde.layers import (
    Attention,
    Blocks,
    Histogram,
    RandomKeep,
    Window,
    non_locality,
    pattern_of,
)

N, HIGH, WIDE = 15, 3, 5


def made(pattern="all", dim=8, heads=2, **parameters):
    torch.manual_seed(3)
    layer = Attention(dim, heads, pattern, **parameters).double()
    nn.init.normal_(layer.out.weight)
    return layer


def states(n=N, dim=8, rows=2):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(rows, n, dim, generator=generator, dtype=torch.float64)


def brute(layer, x, sees):
    """Loop over rows, heads and queries; ``sees(i, j, head)`` says whether i looks at j."""
    width = layer.dim // layer.heads
    q, k, v = (layer.maps[name](x) for name in ("query", "key", "value"))
    heads = torch.zeros_like(x)
    for row in range(len(x)):
        for h in range(layer.heads):
            cut = slice(h * width, (h + 1) * width)
            for i in range(x.shape[1]):
                keys = [j for j in range(x.shape[1]) if sees(i, j, h)]
                if keys:
                    scores = k[row, keys, cut] @ q[row, i, cut] / math.sqrt(width)
                    heads[row, i, cut] = scores.softmax(0) @ v[row, keys, cut]
    return x + layer.out(heads)


def spot(i):
    return divmod(i, WIDE)


SEES = {
    "all": lambda i, j, h: True,
    "window:3": lambda i, j, h: abs(i - j) <= 3,
    "window:2:3": lambda i, j, h: abs(i - j) in (0, 3, 6),
    "global:2:1": lambda i, j, h: i < 2 or j < 2 or abs(i - j) <= 1,
    "block:4": lambda i, j, h: i // 4 == j // 4,
    "block:3,7,2": lambda i, j, h: (i >= 3) + (i >= 10) == (j >= 3) + (j >= 10),
    "axial": lambda i, j, h: spot(i)[0] == spot(j)[0] or spot(i)[1] == spot(j)[1],
    "axial:row": lambda i, j, h: spot(i)[0] == spot(j)[0],
    "axial:column": lambda i, j, h: spot(i)[1] == spot(j)[1],
    "stripes:2": lambda i, j, h: spot(i)[h] // 2 == spot(j)[h] // 2,
}


@pytest.mark.truth("a loop over the allowed keys of each query")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("word", SEES)
@torch.no_grad()
def test_a_pattern_is_dense_attention_with_its_mask(word, causal):
    grid = (HIGH, WIDE) if pattern_of(word).spatial else None
    layer, x = made(word, causal=causal, grid=grid), states()
    strict = word == "axial"
    later = lambda i, j: causal and (j >= i if strict else j > i)  # noqa: E731
    wanted = brute(layer, x, lambda i, j, h: SEES[word](i, j, h) and not later(i, j))
    torch.testing.assert_close(layer(x), wanted, rtol=1e-12, atol=1e-12)
    probs = layer.probs(x)
    shared = probs.expand(2, 2, N, N) > 0
    assert all(
        bool(shared[0, h, i, j]) == bool(SEES[word](i, j, h) and not later(i, j))
        for h in range(2)
        for i in range(N)
        for j in range(N)
    )
    if strict and causal:
        assert torch.equal(layer(x)[:, 0], x[:, 0] + layer.out.bias)


@pytest.mark.truth("a loop over bins of tokens sorted by hand")
@pytest.mark.parametrize(("mode", "bins"), [("within", 4), ("across", 4), ("within", 1)])
@torch.no_grad()
def test_histogram_sorts_each_head_by_its_values(mode, bins):
    layer, x = made(f"histogram:{bins}:{mode}"), states(rows=1)
    values = layer.maps["value"](x)[0]
    bin_of = []
    for h in range(2):
        order = sorted(range(N), key=lambda i: float(values[i, 4 * h : 4 * h + 4].mean()))
        size = -(-N // bins)
        rank = {token: r for r, token in enumerate(order)}
        bin_of.append({i: r // size if mode == "within" else r % size for i, r in rank.items()})
    wanted = brute(layer, x, lambda i, j, h: bin_of[h][i] == bin_of[h][j])
    torch.testing.assert_close(layer(x), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.truth("groups of the given share; the mean of n draws has 1/n of the variance")
@torch.no_grad()
def test_random_groups_are_drawn_anew_in_training_and_averaged_in_eval():
    layer, x = made("random:0.25").train(), states(n=16)
    first = (layer.probs(x) > 0)[0, 0]
    assert first.sum(1).tolist() == [4] * 16
    assert torch.equal(first, first.T)
    assert torch.equal(first, (made("random:0.25").train().probs(x) > 0)[0, 0])
    layer(x)
    assert not torch.equal(first, (layer.probs(x) > 0)[0, 0])
    full = made("all")(x)
    torch.testing.assert_close(layer.eval()(x), full)
    torch.testing.assert_close(made("random:1.0").train()(x), full)
    spread = {}
    for draws in (1, 9):
        found = [made(RandomKeep(0.25, draws), seed=1000 * seed).eval()(x) for seed in range(12)]
        spread[draws] = float(torch.stack(found).var(0).mean())
    assert 5 < spread[1] / spread[9] < 16


@torch.no_grad()
def test_two_axial_layers_reach_everything():
    layer, x = made("axial", grid=(5, 5)), states(n=25)
    reach = (layer.probs(x)[0, 0] > 0).double()
    assert reach.sum(1).tolist() == [9] * 25
    assert bool(((reach @ reach) > 0).all())


@pytest.mark.truth("the Jacobian of a causal model of pixels is strictly lower triangular")
def test_causal_axial_sees_neither_itself_nor_the_future():
    layer, x = made("axial", grid=(3, 4), causal=True), states(n=12, rows=1)
    with torch.no_grad():  # a query is of its own pixel, which only the weights of others show
        layer.maps["query"].weight.zero_()
    jacobian = torch.autograd.functional.jacobian(lambda y: layer(y) - y, x)
    moved = jacobian[0].abs().sum((1, 2, 4))
    assert torch.equal(moved.triu(), torch.zeros_like(moved))
    assert int((moved > 1e-9).sum()) == 3 * 6 + 4 * 3  # pairs in rows, pairs in columns


@pytest.mark.truth("order three whose second keys and values are one is order two; a loop")
@torch.no_grad()
def test_order_three_over_pairs_of_tokens():
    layer, x = made(order=3, causal=True), states(n=6)
    for name in ("key2", "value2"):
        nn.init.zeros_(layer.maps[name].weight)
        nn.init.ones_(layer.maps[name].bias)
    torch.testing.assert_close(
        layer(x), brute(layer, x, lambda i, j, h: j <= i), rtol=1e-13, atol=1e-13
    )
    layer = made(order=3, heads=1)
    q, k, v, k2, v2 = (layer.maps[n](x)[0] for n in ("query", "key", "value", "key2", "value2"))
    scores = torch.einsum("d,jd,kd->jk", q[4], k, k2) / math.sqrt(8)
    share = scores.flatten().softmax(0).view(6, 6)
    wanted = sum(share[j, m] * v[j] * v2[m] for j in range(6) for m in range(6))
    torch.testing.assert_close(layer(x)[0, 4], x[0, 4] + layer.out(wanted))


@pytest.mark.truth("figures of the positional prior in closed form on a grid of 7 x 7")
@torch.no_grad()
def test_non_locality_of_the_prior():
    def reach(a, centre=(0.0, 0.0)):
        layer = made(prior="position", grid=(7, 7), heads=1, centres=(centre,))
        layer.gate.fill_(50.0)
        layer.sharpness.fill_(a)
        place = torch.cartesian_prod(torch.arange(7.0), torch.arange(7.0))
        probs = layer.probs(states(n=49, rows=1))
        return non_locality(probs, place).item(), probs[0, 0, 24, 24].item()

    assert reach(0.0)[0] == pytest.approx(3.609465, abs=1e-6)
    assert reach(0.5)[0] == pytest.approx(1.088459, abs=1e-6)
    assert reach(1.0) == pytest.approx((0.719073, 0.318244), abs=1e-6)
    assert reach(4.0)[0] == pytest.approx(0.060219, abs=1e-6)
    assert reach(1.0, (1.0, 0.0))[0] == pytest.approx(1.075309, abs=1e-6)


@pytest.mark.truth("a 3 x 3 convolution of the values, in the interior")
@torch.no_grad()
def test_nine_heads_of_a_sharp_prior_are_a_convolution():
    layer, x = made(prior="position", grid=(5, 6), heads=9, dim=18), states(n=30, dim=18)
    layer.gate.fill_(50.0)
    layer.sharpness.fill_(50.0)
    values = layer.maps["value"](x).unflatten(1, (5, 6)).permute(0, 3, 1, 2)
    kernel = torch.zeros(18, 1, 3, 3, dtype=torch.float64)
    for head in range(9):
        kernel[2 * head : 2 * head + 2, 0, head // 3, head % 3] = 1.0
    moved = conv2d(values, kernel, padding=1, groups=18).flatten(2).mT
    gap = (layer(x) - x - layer.out(moved)).unflatten(1, (5, 6)).abs()
    assert float(gap[:, 1:-1, 1:-1].max()) < 1e-13
    assert float(gap.max()) > 0.01  # at the border the softmax has fewer keys, the kernel zeros


@pytest.mark.truth("ordinary least squares in the frozen features; mean of rectified scores")
@torch.no_grad()
def test_frozen_queries_and_keys_leave_a_linear_map_and_scores_may_be_rectified():
    layer, x = made(frozen="qk", scores="relu"), states()
    assert [n for n, p in layer.maps.named_parameters() if p.requires_grad] == [
        "value.weight",
        "value.bias",
    ]
    nn.init.zeros_(layer.maps["value"].bias)
    width = 4
    maps = [
        layer.maps["value"].weight[width * h : width * (h + 1)].T
        @ layer.out.weight[:, width * h : width * (h + 1)].T
        for h in range(2)
    ]
    torch.testing.assert_close(layer(x) - x, layer.features(x) @ torch.cat(maps))
    q, k = (layer.maps[n](x)[0, :, :4] for n in ("query", "key"))
    torch.testing.assert_close(layer.probs(x)[0, 0], torch.relu(q @ k.T / 2) / N)


@pytest.mark.truth("scaled_dot_product_attention of torch")
@torch.no_grad()
def test_plain_attention_is_that_of_torch():
    layer, x = made(), states()
    q, k, v = (
        layer.maps[n](x).unflatten(2, (2, 4)).transpose(1, 2) for n in ("query", "key", "value")
    )
    wanted = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert torch.equal(layer(x), x + layer.out(wanted))
    assert layer.n_parameters == 4 * (8 * 8 + 8)
    assert layer.flops((2, N, 8)) == 2 * (4 * 2 * N * 8 * 8 + 2 * 2 * N * N * 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Attention(8, 3), "a dim that is a multiple of the 3 heads, got 8"),
        (lambda: pattern_of("windows:3"), "axial:AXIS.*window:RADIUS:STEP, got 'windows:3'"),
        (lambda: pattern_of("window:3:4:5"), "got 'window:3:4:5'"),
        (lambda: Window(-1), r"radius >= 0 and step >= 1, got window:-1:1"),
        (lambda: Attention(8, 2, "axial"), r"expected grid=\(height, width\) for axial"),
        (lambda: Attention(8, 2, prior="position", grid=(3, 5)), "a square number of heads"),
        (lambda: Attention(6, 3, "stripes", grid=(3, 5))(torch.zeros(1, 15, 6)), "even number"),
        (lambda: made(order=3)(states(n=129)), "at most 128 tokens for order=3, got 129: .* GiB"),
        (lambda: made(order=3, scores="relu"), "order=2 with a prior"),
        (
            lambda: made()(states(), mask=torch.arange(2)[:, None].expand(2, N) > 0),
            "a real token in every row, got none in row 0",
        ),
    ],
)
def test_what_is_wrong_is_said(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_words_and_patterns_are_the_same():
    for word in (*SEES, "histogram:3:across", "random:0.3:2"):
        assert pattern_of(str(pattern_of(word))) == pattern_of(word)
    assert pattern_of("block:4,8") == Blocks((4, 8))
    for pattern in (Blocks((4,)), Blocks(4), RandomKeep(1e-5)):
        assert pattern_of(str(pattern)) == pattern


@pytest.mark.truth("the weights of all pairs, masked by hand")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("word", ["axial", "axial:row", "stripes:2", "block:4", "window:2", "all"])
@torch.no_grad()
def test_a_mask_hides_keys_of_every_pattern(word, causal):
    grid = (HIGH, WIDE) if pattern_of(word).spatial else None
    layer, x = made(word, causal=causal, grid=grid), states()
    mask = torch.rand(2, N, generator=torch.Generator().manual_seed(8)) < 0.7
    probs = layer.probs(x, mask)
    assert float((probs * ~mask[:, None, None]).sum()) == 0.0
    v = layer.maps["value"](x).unflatten(2, (2, 4)).transpose(1, 2)
    heads = (probs @ v) * mask[:, None, :, None]
    wanted = x + layer.out(heads.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, mask), wanted, rtol=1e-12, atol=1e-12)


def test_masks_that_are_no_masks_of_these_states():
    x = torch.randn(2, 6, 4)
    with pytest.raises(
        ShapeError, match="expected a boolean mask, True at positions that may be used"
    ):
        Attention(4, 2)(x, torch.ones(2, 6))
    with pytest.raises(
        ShapeError, match=r"expected a mask of shape \(2, 6\), like the states, got \(2, 5\)"
    ):
        Attention(4, 2)(x, mask=torch.ones(2, 5, dtype=torch.bool))


@pytest.mark.truth("the fraction that was asked for, counted over all pairs of tokens")
@pytest.mark.parametrize("n", [3, 15, 40])
@torch.no_grad()
def test_random_keeps_any_fraction(n):
    for keep in (0.1, 0.25, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        layer = made(f"random:{keep}").train()
        seen = layer.probs(states(n=n)) > 0
        kept = seen[0, 0].sum(1).tolist()
        if keep in (0.1, 0.25, 0.5):  # groups, the last one may be smaller
            assert max(kept) == -(-n // round(1 / keep))
        else:
            wanted = min(max(1, math.floor(keep * n + 0.5001)), n - (keep < 1))
            assert kept == [wanted] * n, keep
        assert bool(seen[0, 0].diagonal().all())
        torch.testing.assert_close(layer(states(n=n)), brute_of(layer, n))


def brute_of(layer, n):
    """Return the output of a random layer in training from the pairs that it allowed."""
    layer.done -= 1
    seen = layer.probs(states(n=n))[0] > 0
    layer.done += 1
    return brute(layer, states(n=n), lambda i, j, h: bool(seen[h % len(seen), i, j]))


@pytest.mark.truth("the fraction of keys that are left out; uniform attention gives it to them")
@pytest.mark.parametrize("keep", [0.3, 0.7, 0.9])
def test_limits_of_a_random_fraction_leave_the_rest_out(keep):
    probs = torch.full((2, 20, 3 * 20), 1 / 20)
    outside = LimitAttention(f"random:{keep}").outside(probs, Site("0:probs"), EditContext())
    torch.testing.assert_close(outside, torch.full((2, 20), 1 - keep))


ROWS = [
    *SEES,
    "random:0.5",
    "random:0.7",
    "random:0.3:2",
    "histogram:3",
    "histogram:4:across",
]
KINDS = [{}, {"scores": "relu"}, {"order": 3}, {"prior": "position"}, {"local_position": True}]


@pytest.mark.truth("the same tokens before a change of later ones, and the same tokens alone")
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("word", ROWS)
@torch.no_grad()
def test_no_causal_pattern_looks_ahead(word, kind):
    spatial = pattern_of(word).spatial or {"prior", "local_position"} & {*kind}
    heads = 4 if "prior" in kind else 2
    layer = made(word, heads=heads, causal=True, grid=(HIGH, WIDE) if spatial else None, **kind)
    if layer.local is not None:
        nn.init.normal_(layer.local)
    x, mask = states(), torch.arange(N) >= torch.tensor([[2], [0]])
    for training, given in ((False, None), (True, None), (False, mask)):
        layer.train(training)
        layer.done.zero_()
        whole = layer(x, given)
        for t in (1, 4, 9, 14):
            later = x.clone()
            later[:, t:] = 3 * later[:, t:].roll(1, -1) - 2
            layer.done.zero_()
            torch.testing.assert_close(layer(later, given)[:, :t], whole[:, :t])


@pytest.mark.truth("tokens sorted among those up to the query, by Python's sorted")
@pytest.mark.parametrize(("mode", "bins"), [("within", 3), ("across", 4), ("within", 1)])
@torch.no_grad()
def test_a_causal_histogram_sorts_the_tokens_so_far(mode, bins):
    layer, x = made(Histogram(bins, mode), causal=True), states(rows=1)
    values = layer.maps["value"](x)[0].unflatten(1, (2, 4)).mean(-1).tolist()

    def sees(i, j, h):
        if j > i:
            return False
        order = sorted(range(i + 1), key=lambda t: values[t][h])
        size = -(-(i + 1) // bins)
        places = [order.index(t) for t in (i, j)]
        first, second = (p // size if mode == "within" else p % size for p in places)
        return first == second

    torch.testing.assert_close(layer(x), brute(layer, x, sees), rtol=1e-12, atol=1e-12)


@pytest.mark.truth("what the layer adds, from the weights and the values")
@pytest.mark.parametrize("kind", KINDS[:2] + KINDS[3:4], ids=str)
@pytest.mark.parametrize("word", ROWS)
@torch.no_grad()
def test_weights_and_features_are_of_the_pattern_that_runs(word, kind):
    spatial = pattern_of(word).spatial or "prior" in kind
    heads = 4 if "prior" in kind else 2
    layer = made(word, heads=heads, grid=(HIGH, WIDE) if spatial else None, **kind)
    nn.init.zeros_(layer.maps["value"].bias)
    x, width = states(), 8 // heads
    for training in (False, True):
        layer.train(training)
        probs, features = layer.probs(x), layer.features(x)
        values = layer.maps["value"](x).unflatten(2, (heads, width)).transpose(1, 2)
        whole = layer(x) - x
        wanted = layer.out((probs @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(whole, wanted)
        maps = [
            layer.maps["value"].weight[width * h : width * (h + 1)].T
            @ layer.out.weight[:, width * h : width * (h + 1)].T
            for h in range(heads)
        ]
        torch.testing.assert_close(whole - layer.out.bias, features @ torch.cat(maps))


def test_weights_of_pairs_and_of_neighbours_are_refused():
    with pytest.raises(InputError, match="order=3, which has a weight for each pair"):
        made(order=3).probs(states())
    for layer in (made(order=3), made(local_position=True, grid=(HIGH, WIDE))):
        with pytest.raises(InputError, match="linear in mixtures of the states"):
            layer.features(states())


@pytest.mark.truth("the same steps without checkpointing")
@pytest.mark.parametrize("reentrant", [False, True])
def test_random_groups_are_the_same_when_several_passes_are_recomputed(reentrant):
    found = []
    for recomputed in (False, True):
        layer, x = made("random:0.4").train(), states().requires_grad_()
        loss = x.new_zeros(())
        for scale in (1.0, 0.5, -2.0):
            y = scale * x
            for _ in range(2):
                y = checkpoint(layer, y, use_reentrant=reentrant) if recomputed else layer(y)
            loss = loss + y.sin().sum()
        loss.backward()
        found.append([x.grad, *(p.grad for p in layer.parameters()), layer.done])
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain)


def test_a_pass_that_is_forgotten_is_not_recomputed_with_other_groups():
    layer, x = made("random:0.4").train(), states().requires_grad_()
    kept = checkpoint(layer, x, use_reentrant=False)
    for i in range(300):
        layer(states() + i)
    with pytest.raises(StateError, match="Run the backward pass after each forward pass"):
        kept.sum().backward()


@pytest.mark.truth("a batch of one row, and a row without padding")
@pytest.mark.parametrize("word", [word for word in ROWS if not pattern_of(word).spatial])
@torch.no_grad()
def test_neither_other_rows_nor_padding_move_a_row(word):
    layer, x = made(word).eval(), states(rows=3)
    mask = torch.arange(N) >= torch.tensor([[0], [4], [9]])
    whole = layer(x, mask)
    for row in range(3):
        alone = layer(x[row : row + 1, mask[row]])
        torch.testing.assert_close(whole[row, mask[row]], alone[0], rtol=1e-12, atol=1e-12)
