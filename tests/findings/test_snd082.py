import pytest
import torch

from findings._nets import assert_clear, assert_raised
from findings._writing import docstrings, plurals, spelled, written
from sonde.findings.codes.snd082 import SND082
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.vocabulary_fit import VocabularyFit, compare_vocabulary, fit_of


def fitted(table: torch.Tensor, vocabulary: dict[str, int]) -> Evidence:
    texts = docstrings()[:30]
    return written(texts).having({compare_vocabulary: fit_of("embed", table, vocabulary, 0)})


def stepped(step: int) -> dict[str, int]:
    own = plurals()
    return {word: (i + step) % len(own) for word, i in own.items()}


@pytest.mark.truth("a table in which a word and its plural share a vector, and a planted step")
@pytest.mark.parametrize("step", [-2, 7])
def test_ids_with_a_step_are_named_with_the_step_back(step: int) -> None:
    own = plurals()
    finding = assert_raised(SND082().check(fitted(spelled(own), stepped(step))), "warning")
    side = "lower" if step > 0 else "higher"
    assert f"With every id {abs(step)} {side}" in finding.sentence
    assert finding.figure.value == pytest.approx(0.5, abs=0.06)
    assert assert_clear(SND082().check(fitted(spelled(own), own))).value > 0.95


def test_ids_in_any_other_order_are_a_note_while_the_answers_are_not_known() -> None:
    own = plurals()
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(1)).tolist()
    other = dict(zip(own, order, strict=True))
    finding = assert_raised(SND082().check(fitted(spelled(own), other)), "note")
    assert "With every id" not in finding.sentence


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_a_table_of_random_numbers_is_not_accused(decay: float) -> None:
    draw = torch.Generator().manual_seed(2)
    table = torch.randn(len(plurals()), 24, generator=draw) * torch.arange(1, 25) ** -decay
    check = SND082().check(fitted(table, plurals()))
    assert_clear(check)
    assert "untrained" in (check.reason or "")


def test_few_pairs_and_broken_tables_are_not_judged() -> None:
    few = {word: i for word, i in plurals().items() if i < 150}
    table = spelled(plurals())
    for kept, rows in ((few, table), (plurals(), table.log())):
        assert isinstance(fit_of("embed", rows, kept, 0), str)
        assert SND082().check(fitted(rows, kept)).state == "not_applicable"


@pytest.mark.truth("the same words with a mark for the space before them")
def test_marks_of_leading_spaces_belong_to_no_word() -> None:
    marked = {("Ġ" + word if i % 3 else word): i for word, i in plurals().items()}
    found = fit_of("embed", spelled(plurals()), marked, 0)
    assert isinstance(found, VocabularyFit)
    assert found.nearer > 0.95
    assert found.n < len(plurals()) / 2
