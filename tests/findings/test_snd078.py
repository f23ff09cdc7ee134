import re
from dataclasses import replace

import numpy as np
import pytest

import sonde
from findings._nets import assert_clear, assert_raised
from findings._writing import GERMAN, docstrings, some, words, written
from lm_twin_case import TEXTS, twin
from sonde.findings.codes.snd035 import SND035
from sonde.findings.codes.snd078 import SND078


@pytest.mark.truth("the texts that were replaced by German ones")
def test_other_languages_are_named_and_tell_a_class() -> None:
    draw = np.random.default_rng(3)
    rows = some(0.4)
    texts = [f"{' '.join(draw.choice(GERMAN, 2))} {i}" if r else t
             for i, (t, r) in enumerate(zip(docstrings(), rows, strict=True))]  # fmt: skip
    evidence = written(texts, words(True), rows.astype(int))
    finding = assert_raised(SND078().check(evidence), "note")
    assert finding.examples == tuple(np.flatnonzero(rows))
    assert finding.classes == ("1",)
    table = SND035().check(evidence).tables["nuisances"]
    of_language = [row for row in table if row["nuisance"] == "language"]
    assert min(row["low"] for row in of_language) > 0.8
    named = replace(evidence, data=replace(evidence.data, label_names=("en", "de")))
    assert not [r for r in SND035().check(named).tables["nuisances"] if r["nuisance"] == "language"]


def test_texts_of_one_language_are_clear() -> None:
    assert_clear(SND078().check(written(docstrings())))


@pytest.mark.slow
@pytest.mark.truth("the loss of the two kinds of text by themselves")
def test_a_language_that_a_language_model_predicts_badly_is_a_warning() -> None:
    draw = np.random.default_rng(0)
    texts = [f"{' '.join(draw.choice(GERMAN, 2))} {i}" if i % 3 == 0 else f"{TEXTS[i % 6]} {i}"
             for i in range(36)]  # fmt: skip
    finding = next(f for f in sonde.scan(twin(), texts, progress=False).findings
                   if f["code"] == "SND078")  # fmt: skip
    assert finding["level"] == "warning"
    assert re.search(
        r"nats per token in the other languages, and [\d.]+ in en", finding["sentence"]
    )
