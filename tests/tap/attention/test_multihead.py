"""``nn.MultiheadAttention``: ports computed beside it agree with what it returns."""

from typing import Any

import pytest
import torch
from torch import nn

from sonde.tap import Tap

CASES = {
    "plain": {},
    "rows second": {"batch_first": False},
    "odd heads": {"num_heads": 3, "embed_dim": 12},
    "other widths": {"kdim": 6, "vdim": 5},
    "more keys": {"add_bias_kv": True, "add_zero_attn": True},
    "no bias": {"bias": False},
}


def attention(**changed) -> nn.MultiheadAttention:
    """Return a seeded one."""
    torch.manual_seed(0)
    how = {"embed_dim": 16, "num_heads": 4, "batch_first": True} | changed
    return nn.MultiheadAttention(how.pop("embed_dim"), how.pop("num_heads"), **how).eval()


@pytest.mark.truth("the module's own output and weights; probabilities times values")
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_ports_give_the_output_and_the_weights_that_the_module_returns(name):
    module = attention(**CASES[name])
    swap = not module.batch_first
    q, k, v = (
        torch.randn(2, n, width)
        for n, width in ((5, module.embed_dim), (7, module.kdim), (7, module.vdim))
    )
    if name == "plain":
        q = k = v = torch.randn(2, 7, 16)  # the fused path
    if swap:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    padding = torch.tensor([[False] * 7, [False] * 4 + [True] * 3])
    call = {"key_padding_mask": padding, "average_attn_weights": False}
    plain = module(q, k, v, **call)
    ports = ("queries", "keys", "values", "probs", "heads")
    with Tap(module, [f":{port}" for port in ports]) as tap:
        output = module(q, k, v, **call)
    assert torch.equal(output[0], plain[0])
    got = {port: tap.rows[f":{port}"] for port in ports}
    probs = got["probs"].unflatten(2, (module.num_heads, -1))
    torch.testing.assert_close(probs.transpose(1, 2), plain[1], atol=1e-6, rtol=0)
    made = module.out_proj(got["heads"])
    torch.testing.assert_close(made.transpose(0, 1) if swap else made, plain[0])
    if not module.add_zero_attn:
        values = got["values"].unflatten(2, (module.num_heads, -1))
        heads = torch.einsum("bqhk,bkhd->bqhd", probs, values).flatten(2)
        torch.testing.assert_close(heads, got["heads"])


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_heads_of_a_padded_encoder_that_runs_on_nested_tensors():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    encoder: Any = nn.TransformerEncoder(layer, 2).eval()
    x, padding = torch.randn(2, 6, 16), torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    sites = ["layers.1:heads", "layers.1.self_attn:heads.2", "layers.1.self_attn"]
    with Tap(encoder, sites) as tap:
        encoder(x, src_key_padding_mask=padding)
    heads, third, output = (tap.rows[str(site)] for site in tap.sites)
    for n, row, head, out in zip((6, 4), heads, third, output, strict=True):
        assert row.shape == (6, 16)
        torch.testing.assert_close(row[:, 8:12], head)
        torch.testing.assert_close(encoder.layers[1].self_attn.out_proj(row[:n]), out[:n])
