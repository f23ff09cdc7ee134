import unicodedata

import numpy as np
import pytest

from findings._nets import assert_clear, assert_raised
from findings._writing import docstrings, pieces, some, words, written
from sonde.findings.codes.snd079 import SND079


@pytest.mark.slow
@pytest.mark.truth("texts in capitals, and letters whose accents were taken apart")
def test_writing_that_the_tokenizer_undoes_or_splits_is_named() -> None:
    upper, label = some(0.5), some(0.5).astype(int)
    texts = [t.upper() if u else t.lower() for t, u in zip(docstrings(), upper, strict=True)]
    finding = assert_raised(SND079().check(written(texts, words(True), label)), "warning")
    assert finding.sentence.startswith("Capitals predict '")
    assert "removes capitals" in finding.sentence
    finding = assert_raised(
        SND079().check(written([t.upper() for t in texts], words(False))), "warning"
    )
    assert "times as many tokens as in small letters." in finding.sentence
    assert finding.fix.startswith("text = text.lower()")
    apart = [unicodedata.normalize("NFD", f"{t[:99]} {'éàüñô ' * 30}") for t in docstrings()]
    finding = assert_raised(SND079().check(written(apart, pieces())), "warning")
    assert "NFC" in finding.fix
    twice = [t for t in docstrings()[:40] for _ in range(2)]
    texts = [t.lower() if i % 2 else t for i, t in enumerate(twice)]
    finding = assert_raised(
        SND079().check(written(texts, words(True), np.arange(80) % 2)), "warning"
    )
    assert "have the same tokens as a text with another label" in finding.sentence


def test_texts_in_which_the_tokenizer_has_nothing_to_undo_are_clear() -> None:
    plain = [" ".join(t.lower().split()) for t in docstrings()[:60]]
    assert_clear(SND079().check(written(plain, words(True))))
