"""A cascade whose weak model knows where it errs, with the threshold found by trying all."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from sonde import InputError, Model
from sonde_studies.recipes import recipe_of
from sonde_studies.recipes.route_by_score import route_by_score


class Lookup(nn.Module):
    """Answers row i with the i-th of some logits: the first column of the input is i."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Buffer(logits)

    def forward(self, x):
        return self.logits[x[:, 0].long()]


def planted(n=301, seed=3):
    """Return logits of a weak and a strong model, and labels: doubt and errors go together."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 4, (n,), generator=draw)
    doubt = torch.rand(n, generator=draw)
    wrong = doubt + 0.3 * torch.rand(n, generator=draw) > 0.9
    said = torch.where(wrong, (label + 1) % 4, label)
    weak = nn.functional.one_hot(said, 4) * (4 - 3 * doubt)[:, None] - 0.7
    best = torch.where(torch.rand(n, generator=draw) < 0.06, (label + 2) % 4, label)
    strong = nn.functional.one_hot(best, 4) * 5.0 - 0.9
    items = [{"x": torch.tensor([float(i), 1.0]), "label": int(c)} for i, c in enumerate(label)]
    return weak, strong, label, items


def asked(weak, strong, items, **options):
    first, second = (Model(Lookup(x).eval()) for x in (weak, strong))
    return route_by_score(first, second, items, progress=False, **options)


@pytest.mark.truth(
    "every threshold tried one by one on the half that chooses; scipy's exact intervals"
)
@pytest.mark.parametrize("keep", [0.9, 0.985])
def test_the_threshold_is_the_highest_that_keeps_the_accuracy_on_new_rows(keep):
    weak, strong, label, items = planted(1201)
    found = asked(weak, strong, items, keep=keep, seed=5, score="entropy")
    chosen = np.random.default_rng(5).permutation(len(label)) < len(label) // 2
    chance = weak.double().softmax(1)
    doubt = -(chance * chance.log()).sum(1).numpy()
    right = [(x.argmax(1) == label).numpy() for x in (weak, strong)]

    def passes(t):
        own, n = chosen & (doubt < t), int(chosen.sum())
        lost, won = int((own & right[1] & ~right[0]).sum()), int((own & right[0] & ~right[1]).sum())
        most = stats.binomtest(lost, n).proportion_ci(0.95).high
        least = stats.binomtest(won, n).proportion_ci(0.95).low
        return most - least <= (1 - keep) * right[1][chosen].mean()

    order = sorted({*doubt[chosen], np.inf})
    bar = next(t for t in order if t == pytest.approx(float(found.facts["threshold"]), rel=1e-5))
    k = order.index(bar)
    assert [passes(t) for t in order[k - 3 : k + 2]] == [True] * 4 + [False]
    judged = np.where(doubt >= bar, right[1], right[0])[~chosen].mean()
    assert f"{judged:.3f}" in found.sentence
    assert found.verdict == "route"
    assert float(found.value or 0) > 2 * float(found.se or 0)


@pytest.mark.truth("which of two planted models is right more often")
def test_a_strong_model_that_is_worse_is_not_routed_to():
    weak, strong, _, items = planted()
    assert asked(strong, weak.flip(0), items).verdict == "the weak model alone"
    found = asked(weak, strong, items, keep=0.999)
    assert found.verdict == "the strong model alone"
    assert "needs 3688 or more that lose nothing" in found.advice[0]


def test_numbers_out_of_range_and_answers_that_are_not_finite_are_refused():
    weak, strong, _, items = planted(60)
    for options in ({"cost": 0.0}, {"keep": 1.5}, {"keep": 0.0}):
        with pytest.raises(InputError, match="cost above 0 and keep in"):
            asked(weak, strong, items, **options)
    weak[7] = float("nan")
    with pytest.raises(InputError, match="the weak model, got NaN or infinity in 1 of 60"):
        asked(weak, strong, items)


@pytest.mark.truth("a score that is the answers themselves, and one that is their opposite")
def test_the_area_is_one_for_what_is_known_and_below_zero_for_the_opposite():
    weak, strong, label, items = planted()
    better = (strong.argmax(1) == label).float() - (weak.argmax(1) == label).float()
    said = nn.functional.one_hot(weak.argmax(1), 4)
    found = [asked(said * (3 - s * better)[:, None] - 0.5, strong, items) for s in (1.0, -1.0)]
    assert float(found[0].value) == pytest.approx(1.0)
    assert float(found[1].value) < -0.5
    assert found[1].level == "warning"


def test_it_refuses_rows_without_labels():
    weak, strong, _, items = planted(60)
    bare = [{"x": item["x"]} for item in items]
    with pytest.raises(InputError, match="60 of them without a label"):
        asked(weak, strong, bare)


@pytest.mark.truth("labels that name the outputs in reverse")
def test_names_in_another_order_than_the_outputs_are_told():
    weak, strong, label, items = planted()
    names = ["red", "blue", "green", "grey"]  # sorted, each has another place
    named = [{"x": item["x"], "label": names[int(c)]} for item, c in zip(items, label, strict=True)]
    want = asked(weak, strong, items)
    found = asked(weak, strong, named, classes=names)
    assert found.sentence == want.sentence
    with pytest.raises(InputError, match="3 is red: name the classes in the order"):
        asked(weak, strong, named)


def test_it_is_found_by_its_word():
    assert recipe_of("route-by-score") is route_by_score
    with pytest.raises(InputError, match="Did you mean"):
        recipe_of("route-by-scores")
