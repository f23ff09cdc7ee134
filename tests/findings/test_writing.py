"""SND076 to SND079, and SND035 by writing: what tokenizers and readers make of texts."""

import html
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from findings._nets import assert_clear, assert_raised
from findings._writing import GERMAN, docstrings, pieces, words, written
from sonde.findings.rule import Rule
from sonde.findings.snd035 import SND035
from sonde.findings.snd076 import SND076
from sonde.findings.snd077 import SND077
from sonde.findings.snd078 import SND078
from sonde.findings.snd079 import SND079

CHINESE = "今天天气很好我们去公园散步然后吃午饭因为明天要下雨所以今天应该多走路看看花草树木和小动物"


def _some(share: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(len(docstrings())) < share


def _chinese(rows: np.ndarray) -> list[str]:
    draw = np.random.default_rng(1)
    signs = ["".join(draw.choice(list(CHINESE), 60)) for _ in rows]
    return [s if row else t for s, t, row in zip(signs, docstrings(), rows, strict=True)]


@pytest.mark.slow
def test_documentation_is_clear_of_unknown_tokens_mark_up_and_other_languages() -> None:
    rules: tuple[Rule, ...] = (SND076(), SND077(), SND078())
    for tokenizer in (words(True), words(False), pieces()):
        evidence = written(docstrings(), tokenizer)
        for rule in rules:
            assert_clear(rule.check(evidence))
        found = SND079().check(evidence).finding
        assert found is None or found.level == "note"


@pytest.mark.slow
@pytest.mark.truth("the tokenizer's own ids, counted, and the texts that were replaced")
def test_unknown_tokens_and_bytes_are_counted_with_the_class_that_has_them() -> None:
    rows = _some(0.2)
    texts, label = _chinese(rows), np.where(rows, 1, _some(0.5, 2) * 2)
    tokenizer = words(True)
    finding = assert_raised(SND076().check(written(texts, tokenizer, label)), "warning")
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    unknown = sum(some.count(tokenizer.unk_token_id) for some in ids)
    assert finding.figure.value == pytest.approx(unknown / sum(map(len, ids)))
    assert set(finding.examples[: rows.sum()]) == set(np.flatnonzero(rows))
    assert finding.classes == ("1",)
    finding = assert_raised(SND076().check(written(_chinese(rows), pieces())), "note")
    assert "are single bytes of signs" in finding.sentence
    assert set(finding.examples) >= set(np.flatnonzero(rows))


@pytest.mark.truth("texts whose case or form was changed, and the line that changes it back")
def test_the_way_to_write_that_leaves_fewer_unknown_tokens_is_named() -> None:
    texts = [t.upper() for t in docstrings()]
    known = {w for t in docstrings() for w in t.lower().split()}
    table = {w: i for i, w in enumerate(["?", *sorted(known)])}
    made = Tokenizer(models.WordLevel(table, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    small = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?")
    finding = assert_raised(SND076().check(written(texts, small)), "warning")
    assert finding.fix.startswith("text = text.lower(). That leaves 0")
    assert finding.figure.value > 0.9


@pytest.mark.truth("the texts in which mark-up and wrongly read signs were put")
def test_mark_up_and_broken_signs_are_counted() -> None:
    rows = _some(0.4)
    marked = [f"<p>{html.escape(t)} &amp; more</p>" if r else t
              for t, r in zip(docstrings(), rows, strict=True)]  # fmt: skip
    finding = assert_raised(SND077().check(written(marked)), "warning")
    assert set(finding.examples) >= set(np.flatnonzero(rows))
    assert finding.figure.value == pytest.approx(rows.mean(), abs=0.02)
    rows = _some(0.1)
    broken = [f"{t} – “café”".encode().decode("cp1252", "replace") if r else t
              for t, r in zip(docstrings(), rows, strict=True)]  # fmt: skip
    finding = assert_raised(SND077().check(written(broken)), "warning")
    assert set(finding.examples) == set(np.flatnonzero(rows))
    assert finding.fix.startswith("Read the files as UTF-8")


@pytest.mark.truth("the texts that were replaced by German ones")
def test_other_languages_are_named_and_tell_a_class() -> None:
    draw = np.random.default_rng(3)
    rows = _some(0.4)
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


@pytest.mark.slow
@pytest.mark.truth("texts in capitals, and letters whose accents were taken apart")
def test_writing_that_the_tokenizer_undoes_or_splits_is_named() -> None:
    upper, label = _some(0.5), _some(0.5).astype(int)
    texts = [t.upper() if u else t.lower() for t, u in zip(docstrings(), upper, strict=True)]
    finding = assert_raised(SND079().check(written(texts, words(True), label)), "warning")
    assert finding.sentence.startswith("Capitals give '")
    assert "takes out capitals" in finding.sentence
    finding = assert_raised(
        SND079().check(written([t.upper() for t in texts], words(False))), "warning"
    )
    assert "times the tokens that they take in small letters." in finding.sentence
    assert finding.fix.startswith("text = text.lower()")
    apart = [unicodedata.normalize("NFD", f"{t[:99]} {'éàüñô ' * 30}") for t in docstrings()]
    finding = assert_raised(SND079().check(written(apart, pieces())), "warning")
    assert "NFC" in finding.fix
    twice = [t for t in docstrings()[:40] for _ in range(2)]
    texts = [t.lower() if i % 2 else t for i, t in enumerate(twice)]
    finding = assert_raised(
        SND079().check(written(texts, words(True), np.arange(80) % 2)), "warning"
    )
    assert "have the tokens of another text with another label" in finding.sentence
