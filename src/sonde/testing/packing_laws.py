"""Laws of formats in which key-value caches store their older tokens."""

import torch
from torch import Tensor

from sonde.core.cache_packing import CachePacking
from sonde.tap.hooks.cache import cache_argument
from sonde.testing.edit_laws import language_model, prompts

N_ROWS, N_HEADS, N_TOKENS, WIDTH, WIDTH2 = 2, 3, 7, 5, 4
PADDING = 2
"""Tokens of the second row that are padding."""


def tokens(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys, values and the mask of real tokens."""
    draw = torch.Generator().manual_seed(5)
    keys = torch.randn(N_ROWS, N_HEADS, N_TOKENS, WIDTH, generator=draw).to(dtype)
    values = torch.randn(N_ROWS, N_HEADS, N_TOKENS, WIDTH2, generator=draw).to(dtype)
    real = torch.ones(N_ROWS, N_TOKENS, dtype=torch.bool)
    real[1, :PADDING] = False
    return keys, values, real


def law_form(packing: CachePacking) -> None:
    """Tokens keep their shape and dtype, and stay finite; inputs are not changed."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        keys, values, real = tokens(dtype)
        before = keys.clone(), values.clone()
        packed = packing.pack(keys, values, real)
        for unpacked, x in zip(packed.unpack(), (keys, values), strict=True):
            assert (unpacked.shape, unpacked.dtype) == (x.shape, x.dtype), (
                f"{unpacked.dtype} of {x.dtype}"
            )
            assert bool(unpacked.isfinite().all()), f"a {dtype} value is not finite after unpacking"
        assert torch.equal(keys, before[0]), "the packing changed the keys"
        assert torch.equal(values, before[1]), "the packing changed the values"
        assert packed.size_bytes > 0


def law_padding(packing: CachePacking) -> None:
    """The content of padding does not change a real token."""
    keys, values, real = tokens()
    there = real[:, None, :, None]
    other = torch.where(there, keys, 1e3), torch.where(there, values, -1e3)
    pairs = zip(
        packing.pack(keys, values, real).unpack(),
        packing.pack(*other, real).unpack(),
        strict=True,
    )
    for actual, expected in pairs:
        moved = float(torch.where(there, actual - expected, 0.0).abs().max())
        assert moved < 1e-6, f"real tokens moved by {moved:.3g} with what stands at padding"


def law_rows(packing: CachePacking) -> None:
    """A row unpacks equally alone or with others, and rows can be reordered."""
    keys, values, real = tokens()
    whole = packing.pack(keys, values, real)
    alone = packing.pack(keys[1:], values[1:], real[1:])
    turned = whole.over_rows(lambda x: x.flip(0))
    for all_rows, own, other in zip(whole.unpack(), alone.unpack(), turned.unpack(), strict=True):
        gap = float((all_rows[1:] - own).abs().max())
        assert gap < 1e-5, f"a row moved by {gap:.3g} with the other rows of the batch"
        assert torch.equal(other, all_rows.flip(0)), "rows in another order unpack differently"


def law_heads(packing: CachePacking) -> None:
    """Some heads unpacked alone equal their values when all heads are unpacked."""
    packed = packing.pack(*tokens())
    for whole, part in zip(packed.unpack(), packed.unpack(slice(1, 3)), strict=True):
        assert torch.allclose(part, whole[:, 1:3], atol=1e-5), "heads unpack otherwise alone"


def law_steps(packing: CachePacking) -> None:
    """A text needs equal bytes in steps or at once; a short text gives plain-cache logits."""
    from transformers import DynamicCache

    from sonde.tap.cache.evicting import caching

    net, (ids, mask) = language_model(), prompts()
    name = cache_argument(net)
    ids, mask = ids.repeat(1, 3), mask.repeat(1, 1)
    mask = torch.cat([mask, torch.ones(len(ids), ids.shape[1] - mask.shape[1]).to(mask)], 1)
    sizes = []
    for step in (ids.shape[1], 2):
        with torch.no_grad(), caching(net, packing) as cache:
            for at in range(0, ids.shape[1], step):
                given = {"attention_mask": mask[:, : at + step].long()}
                net(ids[:, at : at + step], **{name: cache}, **given)
            sizes.append(cache.size_bytes)
            assert cache.get_seq_length() == ids.shape[1]
    assert sizes[0] == sizes[1], f"{sizes} bytes by steps of other lengths"
    n = min(packing.recent + packing.chunk, ids.shape[1])
    short = {"attention_mask": mask[:, :n].long()}
    with torch.no_grad(), caching(net, packing) as cache:
        logits = net(ids[:, :n], **{name: cache}, **short).logits
        plain = DynamicCache(config=net.config)
        expected = net(ids[:, :n], **{name: plain}, **short).logits
    assert torch.equal(logits, expected), "logits differ before anything was read in packed form"
