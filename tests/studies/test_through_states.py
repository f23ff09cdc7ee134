"""Simulated speech, and writers of states and of signals."""

import pytest
import torch

from sonde_studies._simulated_speech import FRAMES, GLIDE, IN_TEXT, WORDS, Texts, Voices, manner
from sonde_studies.study import NULL_LEVEL, Outcome
from sonde_studies.through_states import QUIET, World, codes_of, explained, nearer, written


@pytest.mark.truth("the frames of a text, one after another")
def test_letters_glide_into_the_next_in_the_voice_of_their_speaker():
    voices = Voices.of(3, 5)
    letters = torch.tensor([[4, 0, 7, 7, 2, 1]])
    texts = Texts(letters, torch.tensor([[2, 1, 3, 1, 1, 4]]))
    signal, real = voices.said(texts, torch.tensor([3]))
    wanted = []
    for i, last in enumerate(texts.lasts[0].tolist()):
        own = voices.sounds[letters[0, i]]
        later = voices.sounds[letters[0, min(i + 1, IN_TEXT - 1)]]
        for step in range(1, last + 1):
            share = GLIDE * step / last
            mixed = (1 - share) * own + share * later
            wanted.append(mixed * voices.gains[3] + voices.offsets[3])
    assert int(real.sum()) == len(wanted) == 12
    torch.testing.assert_close(signal[0, :12], torch.stack(wanted))
    assert not signal[0, 12:].any()
    shown = manner(signal, real)
    torch.testing.assert_close(shown[:24], torch.stack(wanted).mean(0))


def test_new_words_and_speakers_are_in_no_transcript():
    world = World.of(1)
    words = {tuple(word) for word in world.voices.words[:WORDS].tolist()}

    def said(judged):
        return {tuple(word) for word in judged.texts.letters.reshape(-1, 3).tolist()}

    assert said(world.transcribed) | said(world.judged["known"]) <= words
    assert not said(world.judged["words"]) & words
    taught = {*world.transcribed.speaker.tolist(), *world.unwritten.speaker.tolist()}
    assert not taught & {*world.judged["speakers"].speaker.tolist()}
    assert {*world.transcribed.speaker.tolist()} < {*world.unwritten.speaker.tolist()}


def test_codes_of_a_recording_do_not_depend_on_its_level():
    world = World.of(0)
    signal, real = world.truth(world.unwritten)
    louder = (2.5 * signal + 1) * real[..., None]
    codes, again = (codes_of(one, real, 0) for one in (signal, louder))
    assert float((codes == again)[real].double().mean()) > 0.99


def test_a_signal_explains_itself_and_its_mean_explains_nothing():
    world = World.of(0)
    truth, real = world.truth(world.judged["known"])
    assert explained(truth, truth, real) == pytest.approx(1)
    flat = truth[real].mean(0).expand_as(truth)
    assert explained(flat, truth, real) == pytest.approx(0, abs=1e-4)
    made = written(world.new_writer(5, 4), world.judged["known"])
    assert made.shape == (len(truth), FRAMES, 5)


@pytest.mark.slow
def test_transcripts_that_are_true_are_seen_by_transcripts_by_lot():
    for leaks in (False, True):
        found = list[float]()
        for seed in range(5):
            world = World.of(seed)
            encoder = world.encoder(seed, 120)
            decoder = world.decoder(encoder, seed, 200)
            writer = world.writer(seed, QUIET, 80, encoder, lot=not leaks)
            found.append(nearer(world, writer, decoder, world.judged["known"]) - 0.5)
        seen = not Outcome(tuple(found), 0.0, NULL_LEVEL).covers
        assert seen == leaks, found
