"""Facts that come back with a note in the prompt: a model that reads, and one that forgot how."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sonde.core import InputError
from sonde.edit import facts_in_context
from sonde_studies._language import language_model

WORDS = ["a", "b", "c", "x", "y", "z", "."]
FACTS = [{"prompt": f"{p} ", "completion": o} for p, o in zip("abc", "xyz", strict=True)]


class Scripted(nn.Module):
    """Answer by a table of what stands last before the answer, or by what a note states."""

    def __init__(self, model, table, *, reads):
        super().__init__()
        self.inner, self.reads = model.module, reads
        self.ids = dict(zip(WORDS, model.processor.convert_tokens_to_ids(WORDS), strict=True))
        self.table = {self.ids[k]: self.ids[v] for k, v in table.items()}

    def forward(self, input_ids, **given):
        out = self.inner(input_ids=input_ids, **given)
        logits = torch.zeros_like(out.logits)
        for row, ids in enumerate(input_ids.tolist()):
            for at, token in enumerate(ids):
                said = self.table.get(token, 0)
                if self.reads and token in ids[:at]:
                    said = ids[ids.index(token) + 1]
                logits[row, at, said] = 10.0
        out.logits = logits
        return out


@pytest.mark.truth("models whose answers are written by hand")
def test_a_note_brings_a_fact_back_to_a_model_that_reads_it():
    model = language_model(WORDS, 12, 0)
    knows = {"a": "x", "b": "y", "c": "z"}
    wrong = {"a": "y", "b": "y", "c": "x"}  # b is still known
    model = replace(model, module=Scripted(model, knows, reads=False))
    for reads, own in ((True, 1.0), (False, 1 / 3)):
        inner = Scripted(language_model(WORDS, 12, 0), wrong, reads=reads)
        found = facts_in_context(model, inner, FACTS)
        assert [found.share("before", p) for p in ("alone", "own", "other")] == [1, 1, 1]
        assert found.share("after", "alone") == pytest.approx(1 / 3)
        assert found.share("after", "own") == pytest.approx(own)
        assert found.share("after", "other") == pytest.approx(1 / 3)
        assert found.p_value() == (0.25 if reads else 1.0)
        assert found.right["after"]["alone"].tolist() == [False, True, False]


def test_notes_of_a_column_stand_before_the_prompt_and_others_state_another_answer():
    model = language_model(WORDS, 12, 0)
    inner = Scripted(model, {}, reads=True)
    facts = [{**FACTS[0], "note": "a x . "}, {**FACTS[1], "note": "a y . "}]  # the second misleads
    found = facts_in_context(model, inner, facts, note_column="note")
    assert found.right["after"]["own"].tolist() == [True, False]
    assert found.right["after"]["other"].tolist() == [False, False]
    assert found.json()["n"] == 2
    facts = [row | {"beside": "b y . a x . "} for row in facts]  # b's own fact stands in it
    found = facts_in_context(model, inner, facts, note_column="note", other_column="beside")
    assert found.right["after"]["other"].tolist() == [True, True]


@pytest.mark.slow
def test_copies_and_rows_of_one_group_count_once():
    model = language_model(WORDS, 12, 0)
    inner = Scripted(model, {"a": "y", "b": "y", "c": "x"}, reads=True)
    for facts, p in (
        (FACTS, 0.25),
        ([*FACTS, *FACTS], 0.25),
        ([row | {"group": "p"} for row in FACTS], 0.5),
    ):
        assert facts_in_context(model, inner, facts).p_value() == p


@pytest.mark.truth("answers written by hand, in the order of the rows")
def test_facts_of_unequal_lengths_keep_their_order():
    """Batches are sorted by length, and both notes of a fact are compared with each other."""
    model = language_model(WORDS, 40, 0)
    inner = Scripted(model, {"a": "x", "b": "y", "c": "z"}, reads=False)
    facts = [
        {"prompt": "c c c c c c a ", "completion": "x"},
        {"prompt": "b ", "completion": "z"},
        {"prompt": "a b c ", "completion": "x"},
        {"prompt": "b a c ", "completion": "z"},
        {"prompt": "a ", "completion": "x"},
    ]
    found = facts_in_context(replace(model, module=inner), inner, facts)
    assert found.right["before"]["alone"].tolist() == [True, False, False, True, True]


def test_what_is_missing_is_named():
    model = language_model(WORDS, 12, 0)
    with pytest.raises(InputError, match="answers of a word or more, got none in 1 of 3 rows"):
        facts_in_context(model, model.module, [*FACTS[:2], {"prompt": "c ", "completion": " "}])
    broken = language_model(WORDS, 12, 0).module
    with torch.no_grad():
        next(iter(broken.parameters()))[3] = torch.nan
    with pytest.raises(InputError, match="expected probabilities, got NaN for the answers of"):
        facts_in_context(model, broken, [{"prompt": "b y . a ", "completion": "x"}, *FACTS])
    with pytest.raises(InputError, match="rows without note"):
        facts_in_context(model, model.module, FACTS, note_column="note")
    with pytest.raises(InputError, match=r"another answer, got 1\. Pass more"):
        facts_in_context(model, model.module, FACTS[:1] * 2)
