"""Token ids in the bits that a model needs for them."""

from math import lgamma, log, pi

import pytest
import torch
from torch import nn

import sonde
from sonde.compress import SequenceCoder
from sonde.core import InputError, StateError
from sonde.testing import causal_model


class Counts(nn.Module):
    """Predicts by Krichevsky and Trofimov: how often each token stood so far, and a half."""

    def __init__(self, n_tokens):
        super().__init__()
        self.n_tokens = n_tokens

    def forward(self, ids):
        seen = nn.functional.one_hot(ids[:, 1:], self.n_tokens).cumsum(1)
        before = torch.cat(
            [torch.zeros_like(ids[:, :1, None].expand(-1, -1, self.n_tokens)), seen], 1
        )
        return (before + 0.5).log()


@pytest.mark.essential
@pytest.mark.truth("the closed form of the Krichevsky-Trofimov code length")
@pytest.mark.parametrize("n_tokens", [5, 400])
def test_length_of_an_adaptive_code(n_tokens):
    generator = torch.Generator().manual_seed(2)
    draw = torch.rand(400, generator=generator)
    ids = (n_tokens * draw**3).long()
    coder = SequenceCoder(Counts(n_tokens).eval(), n_tokens=n_tokens, window=400)
    stream = coder.encode(ids)
    counts = torch.bincount(ids, minlength=n_tokens).tolist()
    nats = lgamma(400 + n_tokens / 2) - lgamma(n_tokens / 2)
    nats -= sum(lgamma(c + 0.5) - log(pi) / 2 for c in counts)
    n_bytes = nats / log(2) / 8
    assert n_bytes <= len(stream) <= 1.001 * n_bytes + 64
    assert coder.decode(stream).equal(ids)


@pytest.mark.slow
@pytest.mark.truth("cross-entropy of one forward of each whole window")
def test_length_is_the_cross_entropy_of_a_language_model():
    model = sonde.load("sonde:stdlib")
    text = b"    def __init__(self, name, value=None):\n        self.name = name\n" * 6
    ids = torch.tensor(list(text))[:380]
    coder = SequenceCoder(model, window=100, rows=3)
    stream = coder.encode(ids)
    nats = 0.0
    with torch.no_grad():
        for window in ids.split(100):
            fed = torch.cat([torch.zeros(1, dtype=torch.long), window[:-1]])[None]
            p = model.module(fed).logits[0].double().log_softmax(-1)
            nats -= float(p.gather(1, window[:, None]).sum())
    n_bytes = nats / log(2) / 8
    assert n_bytes - 1 <= len(stream) <= 1.001 * n_bytes + 64
    assert coder.decode(stream).equal(ids)


def test_windows_and_threads_of_the_encoder_are_those_of_the_decoder():
    model, ids = causal_model(), torch.arange(30) % 32
    stream = SequenceCoder(model, window=7, rows=3).encode(ids)  # the last window is short
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert SequenceCoder(model).decode(stream).equal(ids)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_another_model_is_refused():
    ids = torch.arange(9)
    model = causal_model()
    stream = SequenceCoder(model).encode(ids)
    with pytest.raises(StateError, match=r"written with another model \(fingerprint"):
        SequenceCoder(causal_model(1)).decode(stream)
    model.config.rms_norm_eps *= 2
    with pytest.raises(StateError, match="written with another model"):
        SequenceCoder(model).decode(stream)


def test_another_version_is_refused(monkeypatch):
    ids, coder = torch.arange(9), SequenceCoder(causal_model())
    stream = coder.encode(ids)
    monkeypatch.setattr("sonde.compress.sequence_coder.version", lambda _: "1.2.3+cpu")
    with pytest.raises(StateError, match=r"installed versions are 1\.2\.3 1\.2\.3 1\.2\.3 cpu"):
        coder.decode(stream)


def test_other_probabilities_are_noticed(monkeypatch):
    model, ids = causal_model(), torch.arange(60) % 32
    coder = SequenceCoder(model)
    stream = coder.encode(ids)
    model.lm_head.register_forward_hook(lambda _m, _i, out: out * 1.5)
    with pytest.raises(StateError, match=r"different probabilities|does not fit the probabilities"):
        coder.decode(stream)


def test_what_cannot_be_decoded_again_is_refused():
    ids = torch.arange(9)
    with pytest.raises(InputError, match=r"in training mode, whose dropout is random"):
        SequenceCoder(causal_model().train()).encode(ids)
    with pytest.raises(InputError, match="from 1 to the model's context 64, got 65"):
        SequenceCoder(causal_model(), window=65)
    with pytest.raises(InputError, match=r"no vocab_size\. Pass n_tokens"):
        SequenceCoder(Counts(3))


@pytest.mark.truth(
    "the closed form of the Krichevsky-Trofimov code length, with counts to begin with"
)
def test_examples_and_allowed_tokens_shorten_the_code_as_they_should():
    """What stands before a window is counted, and tokens that cannot occur take no probability."""
    generator = torch.Generator().manual_seed(3)
    ids = (3 * torch.rand(200, generator=generator) ** 2).long()
    before = tuple((3 * torch.rand(150, generator=generator) ** 2).long().tolist())
    model = Counts(90).eval()
    plain, shown, both = (
        SequenceCoder(model, n_tokens=90, window=200, before=b, allowed=a)
        for b, a in (((), None), (before, None), (before, (0, 1, 2)))
    )
    counts = torch.bincount(ids, minlength=90).tolist()
    earlier = torch.bincount(torch.tensor(before), minlength=90).tolist()

    def nats(n_tokens, start):
        total = lgamma(200 + sum(start) + n_tokens / 2) - lgamma(sum(start) + n_tokens / 2)
        parts = zip(counts[:n_tokens], start[:n_tokens], strict=True)
        return total - sum(lgamma(c + s + 0.5) - lgamma(s + 0.5) for c, s in parts)

    lengths = [len(coder.encode(ids)) for coder in (plain, shown, both)]
    wanted = [nats(90, [0] * 90), nats(90, earlier), nats(3, earlier)]
    assert lengths[0] > lengths[1] > lengths[2]
    for n, most in zip(lengths, wanted, strict=True):
        assert n - lengths[0] == pytest.approx((most - wanted[0]) / log(2) / 8, abs=5)
    stream = both.encode(ids)
    assert both.decode(stream).equal(ids)
    for other in (plain, shown):
        with pytest.raises(StateError, match="other tokens before or allowed"):
            other.decode(stream)
    with pytest.raises(InputError, match="expected allowed token ids alone, got 3"):
        both.encode(torch.tensor([0, 3]))
    with pytest.raises(InputError, match="at least one of them allowed"):
        SequenceCoder(model, n_tokens=90, allowed=())
