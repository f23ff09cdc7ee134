import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from findings._nets import assert_clear, assert_raised
from findings._writing import chinese, docstrings, pieces, some, words, written
from sonde.findings.codes.snd076 import SND076
from sonde.findings.codes.snd077 import SND077
from sonde.findings.codes.snd078 import SND078
from sonde.findings.codes.snd079 import SND079
from sonde.findings.rule import Rule


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
    rows = some(0.2)
    texts, label = chinese(rows), np.where(rows, 1, some(0.5, 2) * 2)
    tokenizer = words(True)
    finding = assert_raised(SND076().check(written(texts, tokenizer, label)), "warning")
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    unknown = sum(some.count(tokenizer.unk_token_id) for some in ids)
    assert finding.figure.value == pytest.approx(unknown / sum(map(len, ids)))
    assert set(finding.examples[: rows.sum()]) == set(np.flatnonzero(rows))
    assert finding.classes == ("1",)
    finding = assert_raised(SND076().check(written(chinese(rows), pieces())), "note")
    assert "are single bytes of characters" in finding.sentence
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
    assert finding.fix.startswith("text = text.lower(). Then 0 % of such tokens remain")
    assert finding.figure.value > 0.9


def test_texts_that_the_tokenizer_knows_are_clear() -> None:
    assert_clear(SND076().check(written(docstrings()[:60], words(True))))
