"""Mixtures of images and noise, and the states of the net that denoises them."""

import pytest
import torch

from sonde_studies._flow_matching import BLOCKS, PIXELS, Denoiser, flow, mixtures
from sonde_studies.worlds.learning import drawn


@pytest.mark.truth("the line from image to noise, walked to its ends")
def test_a_mixture_lies_on_the_line_from_its_image_to_its_noise():
    x = torch.rand(5, PIXELS, generator=torch.Generator().manual_seed(1))
    mixed, t, noise = mixtures(x, torch.Generator().manual_seed(2))
    again, same, velocity = flow(x, torch.Generator().manual_seed(2))
    assert torch.equal(mixed, again)
    assert torch.equal(t, same)
    torch.testing.assert_close(mixed + (1 - t) * velocity, noise)
    torch.testing.assert_close(mixed - t * velocity, 2 * x - 1)
    assert ((t >= 0) & (t < 1)).all()


@torch.no_grad()
def test_the_answer_depends_on_the_last_state_and_not_on_the_clean_image():
    net, x, t = drawn(Denoiser, 0), torch.randn(3, PIXELS), torch.rand(3, 1)
    states = net.states(x, t)
    assert len(states) == BLOCKS + 1
    assert torch.equal(net(x, t, torch.zeros(3, PIXELS)), net.last(states[-1]))
    assert torch.equal(net.blocks[0](states[0]), states[1])
