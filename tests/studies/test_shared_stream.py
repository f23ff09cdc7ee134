"""One stream for two tasks: what is sent, what is read of it, and a planted leak."""

import pytest
import torch

from sonde_studies._split_classifier import Teacher
from sonde_studies.shared_stream import Stream, foreground, strangers
from sonde_studies.study import NULL_LEVEL, Outcome
from sonde_studies.worlds.learning import drawn

PICTURES = torch.rand(60, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.truth("the student's own stream, and overlaps counted pixel by pixel")
def test_latents_bits_and_overlap():
    stream = Stream.drawn(drawn(Teacher, 1), 1)
    latent, bits = stream.sent(PICTURES)
    logits, wanted = stream.student.received(PICTURES)
    assert bits == wanted
    named = stream.student.rest.named(stream.student.decoder(latent))
    torch.testing.assert_close(named, logits)
    truth, shown = torch.arange(60) % 10, foreground(PICTURES)
    assert shown.mean() == pytest.approx(0.8, abs=0.02)
    found = stream.judged(PICTURES, truth, shown)
    told = (stream.masks(latent) > 0).flatten(1).tolist()
    overlap = 0.0
    for mine, true in zip(told, shown.flatten(1).tolist(), strict=True):
        pairs = list(zip(mine, true, strict=True))
        overlap += sum(a and b == 1 for a, b in pairs) / sum(a or b == 1 for a, b in pairs)
    assert found["overlap"] == pytest.approx(overlap / 60, rel=1e-5)
    assert found["accuracy"] == float((logits.argmax(1) == truth).double().mean())


def test_the_second_decoder_changes_nothing_that_is_sent():
    stream, before = Stream.drawn(drawn(Teacher, 2), 2), drawn(Teacher, 2)
    kept = {k: v.clone() for k, v in stream.student.state_dict().items()}
    stream.learn(before, PICTURES, foreground(PICTURES), (False, True), 2, 0)
    state = stream.student.state_dict()
    moved = {k.split(".")[0] for k, v in state.items() if not torch.equal(v, kept[k])}
    assert moved == {"encoder", "bottleneck"}
    kept = {k: v.clone() for k, v in state.items()}
    stream.learn_masks(PICTURES, foreground(PICTURES), 2, 0)
    assert all(torch.equal(v, kept[k]) for k, v in stream.student.state_dict().items())


@pytest.mark.slow
def test_a_stream_of_the_own_picture_is_seen_by_those_of_strangers():
    draw = torch.Generator().manual_seed(0)
    found = {0: list[float](), 1: list[float]()}
    for seed in range(4):
        disc = torch.randint(3, 13, (300, 2), generator=draw)
        at = torch.stack(torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij"), 2)
        x = ((at - disc[:, None, None]).square().sum(3) < 10).float().unsqueeze(1)
        stream = Stream.drawn(drawn(Teacher, seed), seed)
        stream.learn(drawn(Teacher, seed), x, x, (False, True), 60, seed)
        found[0].append(strangers(stream, x, x, range(1)))
        found[1].append(strangers(stream, x, x))
    for own, told in found.items():
        assert Outcome(tuple(told), 0.0, NULL_LEVEL).covers == (own == 1)
