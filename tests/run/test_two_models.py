"""Two models on the same inputs: planted rotations, permutations, shifts, and one broken layer."""

import copy
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn.metrics import r2_score
from torch import nn

import sonde
from narrow import present
from page_case import Page
from sonde.core import InputError, Model
from sonde.data import open_inputs
from sonde.report.compare import document
from sonde.report.documents import save_document, to_page, to_terminal
from sonde.run.comparing.model_difference import model_difference
from sonde.run.comparing.two_answers import compare_answers, compare_numbers
from sonde.run.comparing.two_models import RowSample, compare_models
from sonde.run.comparing.two_models_document import two_models_document
from sonde.run.comparing.two_models_findings import explain_code

INPUTS, WIDTH = 24, 12


def net(seed=0) -> Any:
    torch.manual_seed(seed)
    layers = [nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 4)]
    return nn.Sequential(*layers)


def items(n=400):
    x = torch.randn(n, INPUTS, generator=torch.Generator().manual_seed(7))
    return [{"x": row, "label": int(row[0] > 0)} for row in x]


def fitted(module, data=None):
    stream = sonde.read(module, data or items(), sites=["0", "1", "2"], check=False)
    return sonde.fit(RowSample(), stream, progress=False)


def compared(first, second):
    return compare_models(fitted(first), fitted(second), progress=False)


@torch.no_grad()
def turned(module: Any, matrix: Any, shift: Any = 0.0) -> Any:
    """Return a net whose first layer is turned and whose second turns it back."""
    new = copy.deepcopy(module)
    new[0].weight.copy_(matrix @ module[0].weight)
    new[0].bias.copy_(matrix @ module[0].bias + shift)
    new[1].weight.copy_(module[1].weight @ matrix.T)
    return new


@pytest.mark.slow
@pytest.mark.truth("planted: a rotation, a permutation and a shift that later layers undo")
def test_what_was_done_to_a_layer_is_told_apart():
    base = net()
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q
    found = compared(base, turned(base, rotation)).matches
    assert found[0].cka == pytest.approx(1.0, abs=1e-5)
    assert found[0].distance == pytest.approx(0.0, abs=1e-5)
    assert found[0].found_again < 0.7
    assert found[1].movement is not None
    assert found[1].movement.size < 1e-4
    permuted = compared(base, turned(base, torch.eye(WIDTH).flip(0))).matches
    assert permuted[0].found_again == 1.0
    direction = torch.zeros(WIDTH)
    direction[3] = 5.0
    moved = compared(base, turned(base, torch.eye(WIDTH), direction)).matches[0].movement
    assert moved is not None
    assert moved.common == pytest.approx(1.0)
    assert moved.direction == pytest.approx(1.0)
    assert moved.units[0][0] == 3
    spread = float(base[0](torch.stack([i["x"] for i in items()]))[:, 3].std(correction=0).detach())
    assert moved.size == pytest.approx(5.0 / spread, rel=1e-4)


@pytest.mark.slow
@pytest.mark.truth("the formula of the page, with NumPy's covariance and a loop over rows")
@torch.no_grad()
def test_the_movement_is_what_the_page_says():
    """Rows go different ways, in units of unequal spread, and some do not change."""
    base = nn.Sequential(net()[0], nn.ReLU())
    other: Any = copy.deepcopy(base)
    other[0].weight[:2] *= 2.0
    other[0].bias[:2] += torch.tensor([0.5, -0.2])
    data = items(300)
    fits = [
        sonde.fit(RowSample(), sonde.read(m, data, sites=["1"], check=False), progress=False)
        for m in (base, other)
    ]
    movement = compare_models(*fits, progress=False).matches[0].movement
    assert movement is not None
    x, y = (m(torch.stack([row["x"] for row in data])).double().numpy() for m in (base, other))
    covariance = np.cov(x.T, bias=True)
    lengths, variances = [], []
    for change in y - x:
        if change.any():
            lengths.append(change @ change)
            variances.append(change @ covariance @ change / (change @ change))
    assert movement.size == pytest.approx(np.sqrt(np.mean(lengths) / np.mean(variances)), rel=1e-4)
    assert 100 < len(lengths) < 290


@pytest.mark.slow
def test_a_broken_layer_parts_and_the_page_says_where(tmp_path):
    base, broken = net(), net()
    nn.init.normal_(broken[1].weight, std=3.0)
    found = compared(base, broken)
    inputs = [open_inputs(Model(m), items(), batch_size=64) for m in (base, broken)]
    both = compare_answers(Model(base), Model(broken), *inputs, progress=False)
    assert both is not None
    document = two_models_document(found, both, names=("<b>a</b>", "b"), data="items")
    assert "diverge at 1:out" in to_terminal(document, quiet=True)
    text, html = to_terminal(document), to_page(document)
    assert max(map(len, text.splitlines())) <= 80
    page = Page(html)
    assert {a.get("id") for a in page.all("section")} == {
        "classes",
        "findings",
        "map",
        "alike",
        "moved",
        "units",
    }
    assert "<b>a" not in html
    carried = re.search(r'<script type="application/json" id="sonde">([^<]*)</script>', html)
    assert carried is not None
    assert json.loads(carried[1]) == document
    assert save_document(document, tmp_path / "c.json").exists()


@pytest.mark.truth("softmax by hand")
@torch.no_grad()
def test_answers_are_compared_example_by_example():
    base, other = net(), net(1)
    inputs = [open_inputs(Model(m), items(50), batch_size=16) for m in (base, other)]
    found = compare_answers(Model(base), Model(other), *inputs, progress=False)
    assert found is not None
    x = torch.stack([i["x"] for i in items(50)])
    p, q = (torch.log_softmax(m(x).double(), 1) for m in (base, other))
    assert found.same == pytest.approx(float((p.argmax(1) == q.argmax(1)).double().mean()))
    assert found.divergence == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), abs=1e-6)
    wide = nn.Sequential(nn.Linear(INPUTS, 9))
    data = open_inputs(Model(wide), items(50), batch_size=16)
    assert compare_answers(Model(base), Model(wide), inputs[0], data, progress=False) is None


def single(seed: int, ends_in: tuple[nn.Module, ...] = ()) -> Any:
    inner = net(seed)
    last = nn.Linear(4, 1, bias=False)
    nn.init.normal_(last.weight, std=3.0)
    return nn.Sequential(*inner, nn.Tanh(), last, *ends_in)


@pytest.mark.truth("torch.nn.functional: binary cross-entropy of the logits")
@pytest.mark.parametrize("size", [64, 2])  # two logits often lie in [0, 1], as probabilities do
@pytest.mark.parametrize("ends_in", [(), (nn.Sigmoid(),)], ids=["logit", "sigmoid"])
def test_a_single_logit_says_two_classes(ends_in, size):
    rows = items(150)
    one, two = single(3, ends_in), single(4, ends_in)
    inputs = [open_inputs(Model(model), rows, batch_size=size) for model in (one, two)]
    found = compare_answers(Model(one), Model(two), *inputs, progress=False)
    x = torch.stack([row["x"] for row in rows])
    y = torch.tensor([[float(row["label"])] for row in rows])
    with torch.no_grad():
        a, b = (single(seed)(x) for seed in (3, 4))
    assert found is not None
    assert 0.1 < found.same < 0.9
    assert found.same == pytest.approx(float(((a > 0) == (b > 0)).double().mean()))
    assert found.loss == pytest.approx(
        [float(nn.functional.binary_cross_entropy_with_logits(z, y)) for z in (a, b)], rel=1e-5
    )


def test_rows_without_a_label_do_not_end_the_comparison_of_single_logits():
    rows = items(30)
    some = [
        {k: v for k, v in row.items() if k == "x"} if i < 4 else row for i, row in enumerate(rows)
    ]
    nets = single(3), single(4)

    def compared(given):
        inputs = [open_inputs(Model(net), given, batch_size=2) for net in nets]
        return compare_answers(*map(Model, nets), *inputs, progress=False)

    assert compared(some) == compared(rows[4:])


@pytest.mark.parametrize("make", [single, net], ids=["single logit", "classes"])
def test_an_answer_that_is_nan_agrees_with_none_and_is_never_correct(make):
    rows, nets = items(30), (make(3), make(3))
    bad = [row | {"x": row["x"] * (math.nan if i < 6 else 1)} for i, row in enumerate(rows)]

    def compared(given):
        inputs = [open_inputs(Model(net), given) for net in nets]
        return compare_answers(*map(Model, nets), *inputs, progress=False)

    found, clean = compared(bad), compared(rows[6:])
    assert found is not None
    assert clean is not None
    assert (found.n, clean.same) == (30, 1.0)
    assert found.same == pytest.approx(24 / 30)
    assert found.right[0] == pytest.approx(clean.right[0] * 24 / 30)


def test_labels_that_are_no_classes_of_the_models_are_not_compared():
    rows = [row | {"label": 3 * row["label"] + 1} for row in items(60)]
    one, two = single(3), single(4)
    inputs = [open_inputs(Model(model), rows) for model in (one, two)]
    assert compare_answers(Model(one), Model(two), *inputs, progress=False) is None


@pytest.mark.slow
def test_models_of_other_layers_are_matched_by_likeness_and_by_example():
    base = net()
    small = nn.Sequential(copy.deepcopy(base[0]))
    stream = sonde.read(small, list(reversed(items())), sites=["0"], check=False)
    found = compare_models(
        fitted(base), sonde.fit(RowSample(), stream, progress=False), progress=False
    )
    assert found.cka.shape == (3, 1)
    assert found.matches[0].cka == pytest.approx(1.0, abs=1e-6)
    assert found.matches[0].movement is not None
    assert found.matches[0].movement.size < 1e-6
    other = [{"x": i["x"] + 1, "label": 0} for i in items()]
    with pytest.raises(InputError, match="rows that both models have in common, got 0"):
        compare_models(fitted(base), fitted(base, other), progress=False)


@pytest.mark.slow
@pytest.mark.truth("scikit-learn's r2_score; equal states before a head that is scaled")
@torch.no_grad()
def test_numbers_of_regressions_are_compared_also_where_every_state_is_equal() -> None:
    torch.manual_seed(3)
    base = nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh())
    base = nn.Sequential(*base, nn.Linear(WIDTH, 1)).eval()
    other = copy.deepcopy(base)
    other[3].weight.mul_(1.6)
    x = torch.stack([item["x"] for item in items(200)])
    said = [m(x)[:, 0].double() for m in (base, other)]
    y = said[0] + 0.2 * torch.randn(200, dtype=torch.float64)
    rows = [{"x": row, "label": float(t)} for row, t in zip(x, y, strict=True)]
    models = Model(base), Model(other)
    inputs = [open_inputs(m, rows, logits=True) for m in models]
    assert compare_answers(*models, *inputs, progress=False) is None
    found = compare_numbers(*models, *inputs, progress=False)
    assert found is not None
    gap = (said[0] - said[1]) / said[0].std(correction=0)
    assert found.difference == pytest.approx(float(gap.square().mean()) ** 0.5, rel=1e-4)
    assert found.r2 == pytest.approx([r2_score(y, s) for s in said], rel=1e-4)
    assert (found.same, found.n) == (0.0, 200)
    both = compare_models(fitted(base, rows), fitted(other, rows), progress=False)
    words = document(
        two_models_document(both, None, names=("a", "b"), data="rows", numbers=found)
    ).verdict
    assert "R^2 is" in words
    assert "Every state is the same: the answers differ after the last layer compared." in words
    equal = compare_numbers(models[0], models[0], inputs[0], inputs[0], progress=False)
    assert equal is not None
    assert (equal.same, equal.difference) == (1.0, 0.0)


def losing_head(base: Any, lost: Sequence[int]) -> Any:
    """Return a copy whose last layer never answers some classes."""
    other = copy.deepcopy(base)
    with torch.no_grad():
        other[-1].bias[list(lost)] = -1e3
    return other


@pytest.mark.truth("scipy: the binomial law of the rows that changed")
def test_what_a_model_lost_comes_first():
    base = net()
    x = torch.randn(200, INPUTS, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        best = base(x).argmax(1)
    rows = [{"x": row, "label": int(k)} for row, k in zip(x, best, strict=True)]
    lost = int(best.bincount().argmax())
    other = losing_head(base, [lost])
    inputs = [open_inputs(Model(m), rows, batch_size=64) for m in (base, other)]
    both = compare_answers(Model(base), Model(other), *inputs, progress=False)
    assert both is not None
    n = int((best == lost).sum())
    change = present(both.accuracy_change)
    assert both.right == pytest.approx((1.0, 1 - n / 200))
    assert change.value == pytest.approx(-n / 200)
    assert change.p == pytest.approx(min(1.0, 2 * float(binom.pmf(n, n, 0.5))))
    assert present(both.loss_change).p < 1e-3
    assert [(c.name, c.n, c.right) for c in both.lost] == [(str(lost), n, (1.0, 0.0))]
    difference = model_difference(Model(base), Model(other))
    assert [name for name, _ in difference.changes] == ["3.bias"]
    found = compared(base, other)
    names = ("a", "b")
    document = two_models_document(found, both, names=names, data="x", difference=difference)
    text = " ".join(to_terminal(document).split())
    assert text.startswith("The second model loses")
    assert text.index("classes lost accuracy") < text.index("3.bias") < text.index("Layer by layer")
    same = compare_answers(Model(base), Model(base), *[inputs[0]] * 2, progress=False)
    assert present(same).lost == ()
    assert present(present(same).accuracy_change).p == 1.0


def test_codes_of_a_comparison_are_explained():
    assert explain_code("cmp002").startswith("CMP002  Layers that changed")
    with pytest.raises(InputError, match=r"no finding of a comparison has the code 'CMP009'"):
        explain_code("CMP009")


def test_a_model_of_nan_is_refused_for_its_states():
    broken = net()
    with torch.no_grad():
        broken[3].weight[0, 0] = float("nan")
    for pair in ((broken, net()), (net(), broken)):
        which = "first" if pair[0] is broken else "second"
        with pytest.raises(InputError, match=rf"all 40 rows of the {which} model at 3:out"):
            sonde.compare(*pair, items(40), progress=False)
