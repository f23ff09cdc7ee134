"""Texts of the persons whose facts a model learns, forgets and reads in its prompt."""

import numpy as np
import pytest

from sonde_studies._facts_in_context import GROUPS, Persons, accuracy
from sonde_studies._language import language_model
from sonde_studies.worlds.facts import END, tell

N = 5


def _persons(n: int = N) -> tuple[Persons, np.random.Generator]:
    draw = np.random.default_rng(3)
    return Persons.drawn(n, draw), draw


def _parts(text: str) -> list[tuple[str, str]]:
    """Return the persons and answers that a text states, in order."""
    words = text.split()
    assert words[2::3] == [END] * (len(words) // 3)
    return [*zip(words[::3], words[1::3], strict=True)]


@pytest.mark.truth("the sentences of each text, read back by hand")
def test_a_reading_text_repeats_what_it_stated_and_a_recalling_text_does_not():
    persons, draw = _persons()
    known = {**persons.of["forget"], **persons.of["retain"], **persons.of["held"]}
    assert sorted(known) == sorted(f"{g[0]}{i}" for g in GROUPS for i in range(N))
    contrary, first = 0, 0
    for text in persons.reading(("retain", "held"), 200, draw):
        *stated, (asked, said) = _parts(text)
        assert len(stated) == 2
        assert dict(stated)[asked] == said
        assert {name[0] for name, _ in stated} <= {"r", "h"}
        contrary += said != known[asked]
        first += asked == stated[0][0]
    assert 150 < contrary < 200  # eleven of twelve random answers are not the person's own
    assert 70 < first < 130
    for text in persons.recalling("forget", 100, draw):
        *stated, (asked, said) = _parts(text)
        assert said == persons.of["forget"][asked]
        assert len(dict(stated)) == 2
        assert asked not in dict(stated)
    own = [_parts(persons.beside_own("f2", "o7", draw)) for _ in range(60)]
    assert all(len(dict(pairs)) == 2 and dict(pairs)["f2"] == "o7" for pairs in own)
    assert 15 < sum(pairs[0][0] == "f2" for pairs in own) < 45


@pytest.mark.truth("counts by hand")
def test_unlearning_texts_give_one_wrong_answer_to_each_forgotten_person_and_keep_the_rest():
    n = 40  # random answers of so many persons would hardly all be wrong
    persons, draw = _persons(n)
    texts = [_parts(text) for text in persons.unlearning(2 * n, draw)]
    alone = [parts[0] for parts in texts if len(parts) == 1]
    beside = [p for p in texts if len(p) == 3 and p[2][0] not in dict(p[:2])]
    reading = [p for p in texts if len(p) == 3 and p[2][0] in dict(p[:2])]
    assert [len(alone), len(beside), len(reading)] == [2 * n] * 3
    told = {name: {a for n, a in alone if n == name} for name, _ in alone}
    assert sorted(told) == sorted(f"{g}{i}" for g in "fr" for i in range(n))
    for parts in beside:
        name, answer = parts[2]
        told[name].add(answer)
    for name, answers in told.items():
        (answer,) = answers
        right = {**persons.of["forget"], **persons.of["retain"]}[name]
        assert (answer == right) == (name[0] == "r")
    assert all({name[0] for name, _ in parts} <= {"r", "h"} for parts in reading)


@pytest.mark.truth("answers that a model was taught")
def test_accuracy_counts_the_answers_that_a_model_gives_next():
    words = ["f0", "f1", "f2", "o0", "o1", "o2", END]
    model = language_model(words, 4, 0, 16, 1)
    tell(model, ["o1 f0 o2 .", "o1 f1 o0 .", "o1 f2 o1 ."], 40, 0, rate=1e-2)
    asked = ["o1 f0", "o1 f1", "o1 f2"]
    assert accuracy(model, asked, ["o2", "o0", "o1"]) == 1.0
    assert accuracy(model, asked, ["o2", "o1", "o0"]) == pytest.approx(1 / 3)
    assert accuracy(model, asked, ["o0", "o1", "o2"]) == 0.0
