"""A key-value cache in a few bits: what it loses, what it weighs, what a model makes of it."""

import pytest
import torch

import sonde
from cache_name import CACHE
from sonde.compress import QuantCache
from sonde.core import InputError
from sonde.testing import causal_model

WHOLE = torch.ones(2, 256, dtype=torch.bool)


def planted(seed=4, n=256, width=64):
    """Keys and values near a matrix of rank 6, with a few large numbers in each channel."""
    draw = torch.Generator().manual_seed(seed)
    shape = 2, 3, n
    low = torch.randn(*shape, 6, generator=draw) @ torch.randn(2, 3, 6, width, generator=draw)
    x = low + 0.3 * torch.randn(*shape, width, generator=draw)
    return x + 40 * torch.randn(*shape, width, generator=draw) * (
        torch.rand(*shape, width, generator=draw) < 0.005
    )


def errors(packing, x):
    """Return the relative error of keys and of values."""
    found = packing.pack(x, x, WHOLE[:, : x.shape[2]]).unpack()
    return [float((y - x).norm() / x.norm()) for y in found]


@pytest.mark.truth("a rounding loop over single channels and tokens")
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_against_a_loop(bits):
    draw = torch.Generator().manual_seed(bits)
    keys = torch.randn(1, 2, 11, 7, generator=draw) * 3 + 1
    values = torch.randn(1, 2, 11, 5, generator=draw) - 2
    packed = QuantCache(bits=bits, group=3).pack(keys, values, WHOLE[:1, :11])
    lines = [(keys[0, h, :, c], packed.unpack()[0][0, h, :, c]) for h in range(2) for c in range(7)]
    groups = (slice(0, 3), slice(3, 5))
    lines += [
        (values[0, h, t, g], packed.unpack()[1][0, h, t, g])
        for h in range(2) for t in range(11) for g in groups
    ]  # fmt: skip
    for x, found in lines:
        step = float(x.max() - x.min()) / (2**bits - 1)
        slack = 2**-7 * float(x.abs().max())  # offsets have eight bits themselves
        assert float((found - x).abs().max()) <= 0.5 * (step + slack / (2**bits - 1)) + 1e-6
        assert len(set(((found - found.min()) / max(step, 1e-9)).round().tolist())) <= 2**bits


@pytest.mark.truth("the real tokens of each row, packed alone")
def test_padding_moves_no_scale():
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(2, 2, 9, 5, generator=draw) * 0.1 - 3
    real = torch.tensor([[False] * 4 + [True] * 5, [True] * 9])
    x[0, :, :4] = 70.0
    whole = QuantCache(bits=2).pack(x, x, real).unpack()
    for row, first in enumerate((4, 0)):
        own = x[row : row + 1, :, first:]
        alone = QuantCache(bits=2).pack(own, own, WHOLE[:1, first:9]).unpack()
        for found, wanted in zip(whole, alone, strict=True):
            assert torch.equal(found[row : row + 1, :, first:], wanted)


def test_constant_tokens_come_back_whole():
    x = torch.full((2, 3, 9, 4), -1.75)
    assert torch.equal(QuantCache(bits=2).pack(x, x, WHOLE[:, :9]).unpack()[0], x)


def test_one_large_channel_harms_keys_less_than_rounding_by_token():
    draw = torch.Generator().manual_seed(9)
    x = torch.randn(2, 3, 64, 32, generator=draw)
    x[..., 5] += 60
    kept = QuantCache(bits=4, group=32).pack(x, x, WHOLE[:, :64]).unpack()
    others = [c for c in range(32) if c != 5]
    by_channel, by_token = (float((y - x)[..., others].norm()) for y in kept)
    assert by_channel < by_token / 10


@pytest.mark.truth("the order of errors that GEAR's paper states, on planted low rank and outliers")
@pytest.mark.parametrize("bits", [2, 4])
def test_outliers_and_rank_each_lower_the_error(bits):
    x = planted()
    plain, rank, outliers, both = (
        errors(QuantCache(bits=bits, **more), x)
        for more in ({}, {"rank": 4}, {"outliers": 0.02}, {"rank": 4, "outliers": 0.02})
    )
    for at in (0, 1):  # keys, values
        assert both[at] < min(rank[at], outliers[at]) < max(rank[at], outliers[at]) < plain[at]


@pytest.mark.truth("Eckart and Young: what is left of the rounding error beyond the rank")
def test_rank_takes_the_largest_singular_values_of_what_was_lost():
    x = planted(n=64, width=16)
    lost = x - QuantCache(bits=2).pack(x, x, WHOLE[:, :64]).unpack()[1]
    s = torch.linalg.svdvals(lost.double())
    expected = s[..., 3:].square().sum(-1).sqrt()
    found = QuantCache(bits=2, rank=3).pack(x, x, WHOLE[:, :64]).unpack()[1]
    got = (found - x).double().flatten(2).norm(dim=-1)
    torch.testing.assert_close(got, expected, rtol=0.01, atol=0.0)
    exact = errors(QuantCache(bits=2, rank=16), x)
    assert max(exact) < 0.01  # factors are bfloat16


@pytest.mark.truth("a count of the bytes by hand")
@pytest.mark.parametrize(
    ("bits", "outliers", "of_keys", "of_values"), [(4, 0.15, 5, 3), (3, 0.9, 29, 15)]
)
def test_bytes(bits, outliers, of_keys, of_values):
    x = planted(n=64, width=32).to(torch.bfloat16)
    packed = QuantCache(bits=bits, group=16, outliers=outliers, rank=2).pack(x, x, WHOLE[:, :64])
    matrices = 2 * 3
    codes, factors = 64 * 32 * bits // 8, 2 * 2 * (64 + 32)
    # outliers on each side of 64 tokens and of 32 channels
    keys = codes + 32 * 2 * 2 + 32 * 2 * of_keys * (2 + 2) + factors
    values = codes + 64 * 2 * 2 * 2 + 64 * 2 * of_values * (2 + 2) + factors
    assert packed.size_bytes == matrices * (keys + values)


def test_answers_stay_near_and_memory_falls():
    model = sonde.load("sonde:stdlib").module
    text = (b"def read(path):\n    return open(path).read()\n\n" * 5)[:200]
    ids = torch.tensor([list(text)])
    with torch.no_grad():
        expected = model(ids).logits[0, 160:].log_softmax(-1)
        found = {}
        for bits in (8, 2):
            with sonde.caching(model, QuantCache(bits=bits, chunk=32, recent=16)) as cache:
                model(ids[:, :160], **{CACHE: cache})
                again = model(ids[:, 160:], **{CACHE: cache}).logits[0].log_softmax(-1)
                apart = (expected.exp() * (expected - again)).sum(-1).mean()
                found[bits] = float(apart), cache.size_bytes
    whole = (
        2
        * 4
        * 200
        * sum(layer.self_attn.k_proj.out_features for layer in model.model.layers.children())
    )
    assert 0 < found[8][0] < 1e-3 < found[2][0] < 1.0
    assert found[2][1] < found[8][1] < 0.45 * whole


def test_generation_with_padding_beams_and_a_second_turn():
    net = causal_model()
    ids = torch.randint(3, 32, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    with sonde.caching(net, QuantCache(bits=8, chunk=4, recent=2)) as cache:
        out = net.generate(ids, attention_mask=mask, **{CACHE: cache}, max_new_tokens=6,
                           num_beams=3, do_sample=False)  # fmt: skip
        assert cache.get_seq_length() == out.shape[1] - 1
    plain = net.generate(ids, attention_mask=mask, max_new_tokens=6, num_beams=3, do_sample=False)
    assert torch.equal(out, plain)
    with sonde.caching(net, lambda _: QuantCache(bits=8, chunk=4, recent=2)) as cache:
        first = net.generate(ids[:1], **{CACHE: cache}, max_new_tokens=4, do_sample=False)
        more = torch.cat([first, ids[:1, :3]], 1)
        second = net.generate(more, **{CACHE: cache}, max_new_tokens=4, do_sample=False)
    assert torch.equal(second, net.generate(more, max_new_tokens=4, do_sample=False))


@pytest.mark.parametrize(
    "wrong", [{"bits": 5}, {"group": 0}, {"rank": -1}, {"outliers": 1.0}, {"chunk": 0}]
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(InputError, match=f"QuantCache: expected .*{next(iter(wrong))}"):
        QuantCache(**wrong)
