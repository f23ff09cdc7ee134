"""Codes of growing scales, and the transformer that predicts a scale at once."""

import pytest
import torch

from sonde.layers import Attention
from sonde_studies import _growing_scales as scales
from sonde_studies.worlds.learning import digit_images, drawn

KINDS = (("full", "full"), ("within", "linear"), ("within", "within"), ("linear", "linear"))
X = digit_images(0)[0][:50, 0]
CODES, LABEL = scales.codes_of(X), torch.arange(50) % 10


def _net(kinds):
    """Return a net whose layers all change their input."""
    net = drawn(lambda: scales.ScaleNet(kinds), 0)
    with torch.no_grad():
        for part in net.parts[:-1]:
            part.body.out.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    return net.eval()


def test_codes_keep_the_picture_to_half_a_step_and_coarse_ones_its_means():
    found = scales.read_back(CODES)
    assert [x.shape[-1] for x in found] == [1, 2, 4, 8]
    for x in found:
        mean = X.reshape(50, x.shape[-1], 8 // x.shape[-1], x.shape[-1], -1).mean((2, 4))
        assert float((x - mean).abs().max()) <= 0.5 / scales.LEVELS + 1e-6


@pytest.mark.parametrize("kinds", KINDS)
def test_a_scale_sees_earlier_scales_only(kinds):
    """Logits depend on a code of a later or the same scale nowhere; equal parameters."""
    net = _net(kinds)
    assert sum(p.numel() for p in net.parameters()) == sum(
        p.numel() for p in _net(KINDS[0]).parameters()
    )
    with torch.no_grad():
        whole = net(CODES, LABEL)
        for n in (0, 1, 5, 21):
            changed = CODES.clone()
            changed[:, n:] = 16 - changed[:, n:]
            first = int(scales.SCALE[n])
            end = sum(scales.SIZES[: first + 1])
            torch.testing.assert_close(net(changed, LABEL)[:, :end], whole[:, :end])
            torch.testing.assert_close(net(CODES[:, :n], LABEL), whole[:, :end])


def test_within_scales_only_the_first_is_told_the_class():
    with torch.no_grad():
        for kinds in KINDS:
            net = _net(kinds)
            moved = (net(CODES, LABEL) - net(CODES, 9 - LABEL)).abs().amax((0, 2)) > 1e-6
            assert moved[0]
            assert bool(moved[1:].any()) == (kinds != ("within", "within"))


def test_full_attention_is_attention_to_all_tokens_up_to_the_scale():
    """The last token sees all tokens; a token of a scale sees the tokens up to the scale's end."""
    full = drawn(scales.FullAttention, 2)
    layer = Attention(scales.DIM, scales.HEADS)
    torch.nn.init.normal_(full.out.weight)
    layer.load_state_dict(full.state_dict(), strict=False)
    x = torch.randn(3, 85, scales.DIM, generator=torch.Generator().manual_seed(3))
    for first, end in ((0, 1), (1, 5), (5, 21), (21, 85)):
        torch.testing.assert_close(
            full(x)[:, first:end], layer(x[:, :end])[:, first:], rtol=1e-4, atol=1e-4
        )


def test_multiply_adds_are_those_of_the_pairs():
    for kind, earlier in (("full", True), ("within", False)):
        pairs = sum(1 for q in scales.SCALE for k in scales.SCALE if k == q or (earlier and k < q))
        assert scales.multiply_adds(kind) == 2 * scales.DIM * pairs


def test_samples_follow_the_probabilities():
    """A net with fixed logits draws their codes."""
    net = _net(KINDS[1])
    with torch.no_grad():
        net.last.weight.zero_()
        net.last.bias.fill_(-torch.inf)
        net.last.bias[[8, 9]] = torch.tensor([0.25, 0.75]).log()
    codes = scales.sampled(net, torch.arange(200) % 10, 0)
    assert set(codes.unique().tolist()) == {8, 9}
    assert float((codes == 9).double().mean()) == pytest.approx(0.75, abs=0.02)
