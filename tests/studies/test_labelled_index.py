"""Indexes of several users' token states, with labels before or after the fit."""

import numpy as np
import pytest
import torch

from sonde import load
from sonde_studies._labelled_index import NEAREST, WAYS, UserIndex, labelled_index
from sonde_studies.parts.sharing import nearest_cleared

TEXTS = {
    "ann": ["def one(self):\n    return self.one\n", "x = [1, 2, 3]\nprint(x)\n"],
    "bob": ["import os\nimport sys\nimport re\n", "class Bob(Base):\n    pass\n", "y = {}\n"],
}


@pytest.mark.truth("distances by hand, with every row of another user removed")
def test_the_nearest_cleared_row_is_the_nearest_of_the_own_rows():
    draw = torch.Generator().manual_seed(1)
    query, stored = (torch.randn(n, 5, generator=draw) for n in (17, 23))
    user = np.array(["ann", "bob", "cy"])[np.arange(17) % 3]
    owner = np.array(["bob", "cy", "ann"])[np.arange(23) % 3]
    found = nearest_cleared(query, stored, user, owner)
    for i, x in enumerate(query):
        own = [j for j in range(23) if owner[j] == user[i]]
        assert found[i] == min(own, key=lambda j: float(torch.dist(x, stored[j])))
    everyone = torch.cdist(query, stored).argmin(1).numpy()
    assert (everyone != found).any()


@pytest.mark.slow
@pytest.mark.truth("a whitening map by NumPy, and votes counted one by one")
def test_an_index_answers_with_the_commonest_byte_of_the_nearest_readable_rows(tmp_path):
    model = load("sonde:stdlib")
    index = UserIndex(model, TEXTS, tmp_path)
    views = {way: index.view("ann", way) for way in WAYS}
    everyone = sum(len(text) - 1 for own in TEXTS.values() for text in own)
    own = sum(len(text) - 1 for text in TEXTS["ann"])
    assert [len(views[way].rows.byte) for way in WAYS] == [everyone, own, own]
    told = b"".join(text.encode()[1:] for text in TEXTS["ann"])
    assert sorted(views[WAYS[1]].rows.byte.tolist()) == sorted(told)
    state = index.view("bob", WAYS[2]).rows.state[:6]
    for view in views.values():
        rows, root = view.rows.state.numpy(), view.scorer.space.metric.root.numpy()
        far = np.linalg.norm((state.numpy()[:, None] - rows[None]) @ root, axis=2)
        for x, said in zip(far, view.answers(state), strict=True):
            votes = [int(view.rows.byte[i]) for i in np.argsort(x)[:NEAREST]]
            assert votes.count(int(said)) == max(votes.count(v) for v in votes)
    late, first = (views[way].scorer for way in WAYS[1:])
    assert late is views[WAYS[0]].scorer
    assert not torch.equal(late.mean, first.mean)


@pytest.mark.slow
def test_labels_before_the_fit_keep_answers_and_an_index_without_labels_shows_its_texts():
    other = {"ann": ["for i in range(9):\n    i += 1\n", "z = None\n"], "bob": TEXTS["bob"]}
    asked = {name: own[:1] for name, own in other.items()}
    found = labelled_index(load("sonde:stdlib"), TEXTS, other, asked)
    assert found[f"changed | {WAYS[2]}"] == 0.0
    assert found[f"attack | {WAYS[0]}"] >= 0.75  # bob's texts are in both parts: a half for him
