"""Texts respelled by the words of a tokenizer's vocabulary."""

import pytest

from lm_twin_case import TEXTS, twin
from sonde.findings.evidence.texts.vocabulary_words import (
    capitalised,
    spaced,
    vocabulary_forms,
    word_ranks,
)

pytestmark = pytest.mark.slow


@pytest.mark.truth("the texts before their spaces and capitals were removed")
def test_spaces_and_capitals_of_known_words_are_restored() -> None:
    ranks = word_ranks(twin().processor)
    joined = [text for text in TEXTS if spaced(text.replace(" ", ""), ranks) == text]
    assert len(joined) >= len(TEXTS) - 1
    text = "The capital of France is Paris. People in Japan speak Japanese."
    for changed in (text.lower(), text.upper()):
        words = capitalised(changed, ranks).split()
        assert sum(a == b for a, b in zip(words, text.split(), strict=True)) >= len(words) - 2


def test_texts_with_spaces_and_vocabularies_without_words_are_left_alone() -> None:
    ranks = word_ranks(twin().processor)
    for text in (*TEXTS, "x = f(a_long_name)", ""):
        assert spaced(text, ranks) == text
    assert vocabulary_forms(object()) == {}
