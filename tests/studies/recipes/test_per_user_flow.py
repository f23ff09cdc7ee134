"""Rows of one user replaced: nearest rows by hand, labels that keep users apart, words of one."""

import numpy as np
import pytest
import torch

from sonde import InputError, gather, load, read
from sonde_studies.parts.sharing import Sharing
from sonde_studies.recipes.per_user_flow import (
    LABELLED,
    REDACTED,
    SHARED,
    TUNED,
    per_user_flow,
)

WORDS = {"ann": "alpha", "bob": "beta", "cy": "gamma"}


def texts(n=8):
    """Return texts of three users that differ in a word of each user's own; Ann's is ``_`` too."""
    own = {name: f"{word}({name!r}" for name, word in WORDS.items()}
    own["ann"] += ", _"
    return [
        {"text": f"value_{i} = {said}, {i * i})\n", "user": name}
        for name, said in own.items()
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def answer():
    return per_user_flow(load("sonde:stdlib"), texts(), epochs=1, seed=4, progress=False)


def test_labels_keep_users_apart_to_the_row(answer):
    way = {row["way"]: row for row in answer.rows}
    assert way[LABELLED]["changed"] == 0.0
    assert way[LABELLED]["another's row"] == 0.0
    assert way[LABELLED]["private words"] == 0.0
    assert way[REDACTED]["private words"] == 0.0
    assert way[SHARED]["private words"] == way[SHARED]["another's row"]
    assert way[TUNED]["changed"] == 1.0
    assert way[TUNED]["nats"] > 1e-4


@pytest.mark.slow
@pytest.mark.truth("nearest rows found one by one")
def test_answers_of_the_shared_index_are_the_nearest_rows(answer):
    rows, model = texts(), load("sonde:stdlib")
    user = np.array([row["user"] for row in rows])
    order = np.random.default_rng(4).permutation(24)
    kept = [i for name in sorted(WORDS) for i in [j for j in order if user[j] == name][:4]]
    gone = answer.facts["rows replaced"]
    asked = [i for i in range(24) if i not in kept and user[i] != gone]

    def state(text):
        found = gather(read(model, [{"text": text}], reducer="mean", check=False), False)
        return [*found.rows.values()][-1][0].double()

    stored = [state(rows[i]["text"]) for i in kept]
    other = 0
    for i in asked:
        query = state(rows[i]["text"])
        far = [float(torch.dist(query, x)) for x in stored]
        other += user[kept[far.index(min(far))]] != user[i]
    assert answer.rows[0]["another's row"] == pytest.approx(other / len(asked))
    assert answer.n == len(asked) == 8


def test_a_user_with_few_texts_is_named():
    rows = [*texts(), {"text": "x", "user": "dee"}]
    with pytest.raises(InputError, match="'dee': 1"):
        per_user_flow(load("sonde:stdlib"), rows, progress=False)


@pytest.mark.slow
def test_another_order_of_the_texts_moves_answers_only_by_training():
    rows = texts(16)
    users = Sharing(
        load("sonde:stdlib"),
        [row["text"] for row in rows],
        np.array([row["user"] for row in rows]),
        seed=4,
        progress=False,
    )
    still = users.by_tuning(0, 1e-4, orders=True)
    assert still == {"changed": 0.0, "nats": 0.0, "nats, in another order": 0.0}
    assert users.by_tuning(1, 1e-4, orders=True)["nats, in another order"] > 1e-3


def test_own_copies_need_a_causal_model_and_an_epoch():
    with pytest.raises(InputError, match=r"a causal model and epochs of at least 1.*epochs=0"):
        per_user_flow(load("sonde:stdlib"), texts(), epochs=0, own=True, progress=False)
