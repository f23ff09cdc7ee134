"""A classifier cut in two: what its second half receives, and what each stage changes."""

import pytest
import torch

from sonde_studies._split_classifier import Student, Teacher, learn_classes, learn_maps
from sonde_studies.worlds.learning import drawn

PICTURES = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0))
LABEL = torch.arange(40) % 10


@pytest.fixture
def student():
    made = Student(drawn(Teacher, 3), 3)
    learn_maps(made, drawn(Teacher, 3), PICTURES, 0.01, 20, 3)
    return made


@torch.no_grad()
@pytest.mark.truth("the net's own pass with rounded latents, which writes no stream")
def test_the_second_half_receives_the_rounded_latents_in_the_bits_that_were_estimated(student):
    logits, bits = student.received(PICTURES)
    early, late, estimated = student(PICTURES)
    torch.testing.assert_close(logits, student.rest.head(late))
    torch.testing.assert_close(early, student.decoder(student.bottleneck(
        student.encoder(PICTURES))[0]))  # fmt: skip
    assert bits == pytest.approx(float(estimated.mean()), rel=0.05)


@torch.no_grad()
def test_the_whole_net_is_its_two_parts():
    net = drawn(Teacher, 1)
    assert torch.equal(net(PICTURES), net.head(net.late(net.early(PICTURES))))


def test_the_second_stage_changes_neither_the_maps_that_are_sent_nor_their_bits(student):
    kept = {k: v.clone() for k, v in student.state_dict().items()}
    before = student.received(PICTURES)
    learn_classes(student, drawn(Teacher, 3), PICTURES, LABEL, 10, 3)
    after = student.received(PICTURES)
    assert after[1] == before[1]
    assert not torch.equal(after[0], before[0])
    moved = {
        k.split(".")[0] for k, v in student.state_dict().items() if not torch.equal(v, kept[k])
    }
    assert moved == {"decoder", "rest"}


def test_the_first_stage_leaves_the_rest_as_the_teacher_made_it(student):
    rest = drawn(Teacher, 3).state_dict()
    assert all(torch.equal(v, rest[k]) for k, v in student.rest.state_dict().items())
    fresh = Student(drawn(Teacher, 3), 3)
    for part in ("encoder", "decoder", "bottleneck"):
        pairs = zip(getattr(student, part).parameters(), getattr(fresh, part).parameters(),
                    strict=True)  # fmt: skip
        assert any(not torch.equal(a, b) for a, b in pairs)
