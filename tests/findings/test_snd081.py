import random

import pytest

from findings._nets import assert_clear, assert_raised
from findings._writing import docstrings, written
from sonde.findings.codes.snd081 import SND081
from sonde.findings.evidence.texts.text_order import word_order


def shuffled(text: str, seed: int) -> str:
    words = text.split()
    random.Random(seed).shuffle(words)
    return " ".join(words)


@pytest.mark.truth("the words of every text in random order, and as they were written")
def test_words_in_random_order_are_named() -> None:
    texts = docstrings()
    finding = assert_raised(
        SND081().check(written([shuffled(t, i) for i, t in enumerate(texts)])), "warning"
    )
    assert finding.figure.value == pytest.approx(1.0, abs=0.1)
    own = assert_clear(SND081().check(written(texts)))
    assert own.value > 1.3


def test_lists_of_keywords_are_no_sentences() -> None:
    draw = random.Random(4)
    words = [f"word{i}" for i in range(60)]
    lists = [" ".join(draw.sample(words, 20)) for _ in range(150)]
    assert_clear(SND081().check(written(lists)))
    assert word_order(lists, 0).sentences == 0
    bags = [" ".join(draw.choices(words, k=40)) for _ in range(150)]  # words occur twice
    own = assert_clear(SND081().check(written(bags)))
    assert own.value == pytest.approx(1.0, abs=0.1)


@pytest.mark.truth("texts as they were written, each several times")
def test_texts_that_repeat_themselves_are_not_in_random_order() -> None:
    texts = [" ".join([t] * 6) for t in docstrings()]
    assert assert_clear(SND081().check(written(texts))).value < 0.7


@pytest.mark.truth("words that were drawn at random, in any order")
def test_many_texts_are_drawn_down_to_a_number_of_words() -> None:
    draw = random.Random(8)
    words = [f"word{i}" for i in range(300)]
    short = [" ".join(draw.choices(words, k=200)) for _ in range(600)]
    found = word_order(short, 3)
    assert found.n == 200
    assert found.ratio == pytest.approx(1.0, abs=0.05)
