"""Drawn worlds in which recipes once found what is not there; each seed was answered falsely."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from tools.figures import _recipe_worlds as worlds
from tools.figures import recipes as nulls

from sonde import InputError, Model
from sonde.metrics import Cascade
from sonde_studies.parts.cascades import order_p_value
from sonde_studies.parts.choice import NOT_TOLD, correlation_of_halves, gain_of_best
from sonde_studies.parts.figures import auroc_effects, is_sure
from sonde_studies.parts.forks import least_alike
from sonde_studies.parts.owners import owners_of, parted, shuffled_labels
from sonde_studies.parts.rows import apart, check_classes
from sonde_studies.recipes import RECIPES, recipe_of

CASES = {
    "alternating-fields": (partial(worlds.alternated, 0, "by lot"), NOT_TOLD),
    "decode-states": (partial(worlds.decoded, 0, is_left=False), "nothing is left at 0:out"),
    "family-of-models": (partial(worlds.handed, 0, "by lot"), NOT_TOLD),
    "federated-bits": (partial(worlds.federated, 0, is_told=False), NOT_TOLD),
    "recolour": (partial(worlds.coloured, 2, is_changed=False), "cannot tell"),
    "slots-over-time": (partial(worlds.tracked, 5, 0.0), "it does not"),
}


@pytest.mark.truth("worlds that were drawn without anything to find")
@pytest.mark.parametrize("word", CASES)
def test_nothing_is_found_where_there_is_nothing(word):
    ask, verdict = CASES[word]
    assert ask() == verdict


@pytest.mark.truth("DeLong's variance of an AUROC, pair by pair")
def test_effects_of_rows_add_up_to_the_variance_of_an_auroc():
    draw = np.random.default_rng(3)
    truth = draw.random(60) < 0.3
    score = (draw.normal(size=60) + truth).round(1)
    pairs = np.sign(score[truth][:, None] - score[~truth]) / 2 + 0.5
    want = sum(np.var(pairs.mean(axis)) / pairs.shape[1 - axis] for axis in (0, 1))
    assert np.square(auroc_effects(score, truth)).sum() == pytest.approx(want)


@pytest.mark.truth("batches of one law, and a block where one task is against the other")
def test_lots_of_batches_differ_as_often_as_p_says():
    draw, task = torch.Generator().manual_seed(2), torch.arange(40) % 2
    found = list[float]()
    for _ in range(60):
        parts = {n: torch.randn(40, d, generator=draw) + 0.3 for n, d in (("low", 9), ("high", 4))}
        found.append(least_alike(parts, task, 1)[1])
    assert sum(p <= 0.1 for p in found) <= 12  # more in one of 100
    assert np.mean(found) == pytest.approx(0.5, abs=0.12)
    parts["high"][task == 1] *= -1
    block, p = least_alike(parts, task, 1)
    assert (block, p) == ("high", pytest.approx(1 / 401))


@pytest.mark.truth("all signs of the rows that differ, one by one")
@pytest.mark.parametrize(("n_better", "n_worse"), [(4, 0), (6, 0), (9, 2), (8, 3)])
def test_gains_of_few_rows_are_counted_as_all_their_signs_would_be(n_better, n_worse):
    n = n_better + n_worse
    sums = [sum(signs) for signs in itertools.product((-1, 1), repeat=n)]
    p = sum(s >= n_better - n_worse for s in sums) / len(sums)
    gain = [1.0] * n_better + [-1.0] * n_worse + [0.0] * 31
    assert is_sure(gain) == (p < 0.0228)


COPIED = {
    "change-pairs": (partial(nulls.changed, 500_001), "not told"),
    "codebook-bottleneck": (partial(worlds.coded, 1, is_told=False), "nothing to keep"),
    "decode-states": (partial(worlds.decoded, 1, is_left=False), "nothing is left at 0:out"),
    "defined-anomaly": (partial(worlds.defined, 0), "it cannot"),
    "missing-view": (partial(nulls.fused, "missing-view", 0), NOT_TOLD),
}


@pytest.mark.truth("worlds that were drawn without anything to find")
@pytest.mark.parametrize("has_ids", [False, True])
@pytest.mark.parametrize("word", COPIED)
def test_copies_of_rows_are_no_finding(word, has_ids, monkeypatch):
    monkeypatch.setattr(worlds.REPEATS, "copies", 4)
    monkeypatch.setattr(worlds.REPEATS, "has_ids", has_ids)
    ask, verdict = COPIED[word]
    assert ask() == verdict


PERSONS = COPIED | {
    "channel-regions": (partial(nulls.mapped, 0), NOT_TOLD),
    "feature-fusion": (partial(nulls.fused, "feature-fusion", 0), NOT_TOLD),
}


SLOW = ("channel-regions", "defined-anomaly", "change-pairs")


@pytest.mark.truth("worlds of persons, drawn without anything to find")
@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize(
    "word",
    [pytest.param(word, marks=pytest.mark.slow if word in SLOW else ()) for word in PERSONS],
)
def test_near_copies_of_a_person_are_no_finding(word, is_named, monkeypatch):
    monkeypatch.setattr(worlds.REPEATS, "copies", 4)
    monkeypatch.setattr(worlds.REPEATS, "is_person", True)
    monkeypatch.setattr(worlds.REPEATS, "is_named", is_named)
    ask, verdict = PERSONS[word]
    assert ask() == verdict


def test_no_group_is_divided_and_one_row_of_each_judges():
    draw = np.random.default_rng(1)
    owner = draw.integers(0, 40, 150)
    label = owner % 3
    kept, held = apart(label, 0.4, 5, owner=owner)
    assert not {*owner[kept].tolist()} & {*owner[held].tolist()}
    assert {*owner[kept].tolist(), *owner[held].tolist()} == {*owner.tolist()}
    assert len(np.unique(owner[held])) == len(held) == 16
    assert {*label[held].tolist()} == {*label[kept].tolist()} == {0, 1, 2}
    first, rest = parted(owner, 0.4, draw)
    assert not {*owner[first].tolist()} & {*owner[rest].tolist()}
    assert len(first) + len(rest) == len(owner)
    dealt = shuffled_labels(owner, owner, 2)
    assert all(len(np.unique(dealt[owner == one])) == 1 for one in np.unique(owner))
    assert (dealt != owner).mean() > 0.8


@pytest.mark.truth("rows of known origin; rows of smooth densities have no near copies")
def test_near_copies_of_all_kinds_are_one_group():
    noise, label = 1e-3 * worlds.normal(1, 240, 12), np.arange(240) % 60
    x = worlds.normal(0, 60, 12)[label] + noise
    same = label[:, None] == label
    rows = [{"x": row, "i": i} for i, row in enumerate(x)]
    found = owners_of(rows)
    assert ((found[:, None] == found) == same).all()
    words = [" ".join(f"{int(1e4 * v):04x}" for v in row.abs()) for row in worlds.normal(0, 60, 12)]
    texts = [{"text": f"{words[i]} {chr(97 + n % 26)}"} for n, i in enumerate(label)]
    found = owners_of(texts)
    assert ((found[:, None] == found) == same).all()
    n_joined = 0
    for seed in range(20):
        drawn = worlds.normal(seed, 200, 9).pow(3 if seed % 2 else 1)
        n_joined += 200 - len(np.unique(owners_of([{"x": row} for row in drawn])))
    assert n_joined <= 2  # of 4,000 rows


def test_answers_say_how_many_rows_are_different():
    x = worlds.normal(0, 60, 4)
    items = worlds.items_of(x, x[:, :2].argmax(1)) * 3
    found = worlds.ask("feature-fusion", worlds.EYE, worlds.EYE, items)
    assert found.facts["rows of data"] == "180, 60 different (copies count once)"
    named = [row | {"id": i} for i, row in enumerate(items)]
    told = worlds.ask("feature-fusion", worlds.EYE, worlds.EYE, named).facts
    assert "rows of data" not in told
    assert told["equal rows of data"].startswith("120, ")


def test_all_recipes_but_those_of_sets_read_copies_once():
    plain = {word for word in RECIPES if not hasattr(recipe_of(word), "__wrapped__")}
    assert plain == {"view-sets"}  # things are its units, views of a thing may be equal


@pytest.mark.truth("(E max)^2 / (k - 1) of independent arms, E max by numerical integration")
@pytest.mark.parametrize(("n_arms", "largest"), [(2, 0.5642), (3, 0.8463), (5, 1.1630)])
def test_halves_that_choose_for_each_other_are_correlated(n_arms, largest):
    draw = np.random.default_rng(n_arms)
    arms = {k: v for k, v in enumerate(draw.normal(size=(n_arms, 20_000)))}
    found = correlation_of_halves(arms, {"none": np.zeros(20_000)}, 3)
    assert found == pytest.approx(largest**2 / (n_arms - 1), abs=0.05)
    assert correlation_of_halves({0: arms[0]}, {"none": np.zeros(20_000)}, 3) < 0.05


@pytest.mark.truth("all ways to deal the scores, which are equally likely")
def test_a_score_that_knows_nothing_gains_as_rarely_as_p_says():
    draw, p = np.random.default_rng(4), list[float]()
    for _ in range(16):
        weak, strong = draw.random(60) < 0.7, draw.random(60) < 0.9
        p.append(order_p_value(Cascade(weak, strong, draw.random(60)), draw))
    assert np.mean(p) == pytest.approx(0.5, abs=0.2)
    assert min(p) < 0.25
    assert order_p_value(Cascade(weak, strong, ~weak + draw.random(60)), draw) <= 0.0025


@pytest.mark.truth("arms of equal accuracy, of which none gains")
@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_the_best_of_equal_arms_gains_as_rarely_as_promised(shared):
    n_false = n_before = 0
    for seed in range(400):
        draw = np.random.default_rng(seed)
        common, own = draw.random(150) < 0.4, draw.random((5, 150)) < 0.4
        takes = draw.random((5, 150)) < shared
        *arms, before = np.where(takes, common, own)
        gain, correlation = gain_of_best(dict(enumerate(arms)), {"before": before}, seed)
        n_false += is_sure(gain, correlation)
        n_before += is_sure(gain)
    assert n_false <= 16  # 2.3 % of 400: more in one of 50
    assert n_false < n_before


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([0, 1, -1] * 9, "9 of 27 rows without one.* Leave"),
        ([0, 1], "9 or more labelled rows, got 2"),
        ([0] * 20, "2 or more classes, got 0"),
        ([0] * 19 + [1], r"of every class, got \{'1': 1\}"),
    ],
)
def test_the_first_reason_alone_is_named(label, message):
    with pytest.raises(InputError, match=message):
        check_classes("recipe", np.array(label), 9)


def test_rows_of_one_group_are_not_called_one_row():
    with pytest.raises(InputError, match="groups: 1, rows: 40"):
        apart(np.arange(40) % 2, 0.3, 0, owner=np.zeros(40, int))


def test_a_refusal_says_how_many_rows_are_left_of_groups_and_copies():
    rows = [{"x": torch.randn(4), "a": i % 2, "b": i % 3, "group": i // 5} for i in range(300)]
    net = torch.nn.Sequential(torch.nn.Linear(4, 3)).eval()
    with pytest.raises(InputError, match=r"got 60.* The recipe read groups of data: 60 of 300"):
        recipe_of("where-tasks-part")(Model(net), rows, tasks=("a", "b"))
