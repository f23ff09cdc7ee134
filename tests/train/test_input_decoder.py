"""Decoding states: principal axes in closed form, dead units, and an encoder that stays."""

import pytest
import torch
from torch import nn

from sonde.core import InputError
from sonde.train import InputDecoder


def rows(n=4000, seed=0):
    draw = torch.Generator().manual_seed(seed)
    size = torch.tensor([2.0, 1.5, 1.0, 0.5], dtype=torch.float64)
    x = torch.randn(n, 4, generator=draw, dtype=torch.float64)
    x = torch.linalg.qr(x - x.mean(0))[0] * size * n**0.5 + 3.0  # covariance diag(size^2), exactly
    return x, size


@pytest.mark.truth("closed form: the error of the best linear decoder is the discarded variance")
def test_error_is_the_discarded_variance():
    x, size = rows()
    turn = torch.linalg.qr(torch.tensor([[1.0, 2.0], [-0.5, 1.0]], dtype=torch.float64))[0]
    states = torch.cat((x[:, :2] @ turn, torch.zeros(len(x), 3)), 1)  # and three dead units
    decoder = InputDecoder(4).solve(states, x).requires_grad_(False)
    expected = float(size[2:].square().sum()) / 4
    assert float(decoder(states, x)) == pytest.approx(expected, rel=1e-3)
    turned = x @ torch.linalg.qr(x[:4])[0]
    whole = InputDecoder(4).solve(turned, x).requires_grad_(False)
    assert float(whole(turned, x)) < 1e-6


def test_training_reaches_the_closed_form_and_leaves_the_encoder():
    x, _ = rows(400)
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(4, 2).double(), InputDecoder(4, (8,)).double()
    held = [p.detach().clone() for p in encoder.parameters()]
    decoder(encoder(x), x)
    made = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-2)
    for _ in range(150):
        made.zero_grad()
        loss = decoder(encoder(x), x)
        loss.backward()
        made.step()
    assert all(torch.equal(a, b) for a, b in zip(held, encoder.parameters(), strict=True))
    best = InputDecoder(4).double().solve(encoder(x), x)(encoder(x), x)
    assert loss.item() < 1.15 * best.item()


def test_the_loop_shows_decoded_inputs_again():
    x, _ = rows(20)
    decoder = InputDecoder(4).solve(x[:, :2], x)
    answers, inputs = decoder.loop(lambda h: h[:, :2], lambda h: h.sum(1, keepdim=True), x, 2)
    torch.testing.assert_close(inputs[2], decoder.decode(inputs[1][:, :2]))
    torch.testing.assert_close(answers[:, :, 0], inputs.sum(2))
    with pytest.raises(InputError, match=r"expected inputs of 4 numbers, got 3"):
        decoder(x[:, :2], x[:, :3])


@pytest.mark.truth("closed form: a projection, and the variance of a mean of independent noises")
def test_what_is_perceived_is_the_mean_of_random_starts():
    x, _ = rows(2000)
    decoder = InputDecoder(4).solve(x[:, :2], x)
    plain = decoder.perceive(lambda h: h[:, :2], x, n=3)
    torch.testing.assert_close(plain[:, :2], x[:, :2], rtol=1e-3, atol=5e-3)
    draw = torch.Generator().manual_seed(0)
    given = {"draws": 8, "noise": 0.5, "generator": draw}
    noisy = decoder.perceive(lambda h: h[:, :2], x, n=2, **given) - plain
    assert float(noisy[:, :2].var()) == pytest.approx(0.25 / 8, rel=0.1)
    again = {**given, "generator": torch.Generator().manual_seed(0)}
    assert torch.equal(decoder.perceive(lambda h: h[:, :2], x, n=2, **again) - plain, noisy)
    with pytest.raises(InputError, match="one round and one draw or more"):
        decoder.perceive(lambda h: h[:, :2], x, n=0)
