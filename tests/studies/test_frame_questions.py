"""Test questions that ask for two frames of a clip and leave out a third, all in the same words."""

from collections import Counter

import pytest
import torch

from sonde.compress import asked_parts, question_parts, yes_relevance
from sonde_studies._frame_questions import (
    ANSWERS,
    COMMON,
    MARK,
    NOISE,
    PIXELS,
    PROMPT,
    YES_PROMPT,
    frames_of,
    names_of,
    parted,
    parter_of,
    question_of,
    tags_of,
    word_vectors,
    yes_model_of,
)


def asked(n: int, seed: int = 0):
    """Return clips' names and a question for each."""
    draw = torch.Generator().manual_seed(seed)
    clips = [names_of(draw) for _ in range(n)]
    return clips, [question_of(clip, draw) for clip in clips]


@pytest.mark.truth("the names and the words of the templates, counted")
def test_words_do_not_tell_which_frame_is_left_out():
    clips, questions = asked(60)
    for clip, question in zip(clips, questions, strict=True):
        words = Counter(question.split())
        assert all(words[w] == 1 for name in clip[:3] for w in name.split())
        assert words["frame"] == words["in"] == 3
        assert len({w for name in clip for w in name.split()}) == 16
        assert {*question_parts(question, questions)} == {*clip[:3]}  # the rule takes all three
    same = [Counter(w for w in question.split() if w in COMMON.split()) for question in questions]
    assert all(counts == same[0] for counts in same)
    assert len({question.split()[3] for question in questions}) == 2  # both templates


@pytest.mark.truth("the vectors of the words and the deviation of the noise")
def test_frames_carry_the_sums_of_their_names_vectors():
    draw = torch.Generator().manual_seed(1)
    vector = word_vectors(draw)
    both, one, other = vector(["amber bell", "amber", "bell"])
    torch.testing.assert_close(both, one + other)
    assert bool((both[:PIXELS] == 0).all())
    patches = torch.rand(400, 16, PIXELS, generator=draw)
    frames = frames_of(patches, both.expand(400, -1), draw)
    assert torch.equal(frames[..., :PIXELS], patches)
    rest = frames[..., PIXELS:] - both[PIXELS:]
    assert rest.shape[-1] == MARK
    assert abs(float(rest.mean())) < 0.02
    assert abs(float(rest.std()) - NOISE) < 0.02


@pytest.mark.truth("words of frames whose names are known, without noise")
def test_tags_are_the_likeliest_words_of_a_frame():
    vector = word_vectors(torch.Generator().manual_seed(1))
    names = ["dusk fern", "night amber", "pine bell"]
    frames = vector(names)[:, None].repeat(1, 5, 1)
    frames[..., :PIXELS] = 9.0  # pixels say nothing
    for name, tags in zip(names, tags_of(frames, vector), strict=True):
        assert len({*tags.split()}) == 4
        assert {*tags.split()[:2]} == {*name.split()}
    one = frames[:1] + vector(["moss moss moss"])
    assert tags_of(one, vector)[0].startswith("moss ")


@pytest.mark.slow
@pytest.mark.truth("the frames that each question asks for")
def test_the_model_of_parts_learns_which_frames_are_asked_for():
    clips, questions = asked(20, 7)
    parter = parter_of(0, 500)
    written = [asked_parts(parter, question, PROMPT, 8) for question in questions]
    assert parted(written, clips) >= 0.9
    assert parted([written[i - 1] for i in range(20)], clips) == 0.0
    assert parted([[b, a] for a, b, *_ in clips], clips) == 1.0


@pytest.mark.slow
@pytest.mark.truth("the name of each frame")
def test_yes_is_likelier_for_a_frame_with_the_asked_name():
    draw = torch.Generator().manual_seed(4)
    patches, vector = torch.rand(40, 16, PIXELS, generator=draw), word_vectors(draw)
    yes, (clips, _) = yes_model_of(patches, vector, 0, 900), asked(12, 8)
    right = 0
    for clip in clips:
        tags = tags_of(frames_of(patches[:8], vector(clip), draw), vector)
        found = torch.stack([yes_relevance(yes, tags, [x], YES_PROMPT, ANSWERS) for x in clip])
        right += int((found.argmax(1) == torch.arange(8)).sum())
    assert right >= 48  # of 96; chance is 12
