"""The panel of classes: its scores, its attention, and what it calls the reason."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import permutation_test, spearmanr
from sklearn.metrics import precision_score, recall_score
from torch import nn
from torch.nn.functional import interpolate, one_hot

from sonde import InputError, Model
from sonde.tap import Tap
from sonde_studies._planted import PatchAttention
from sonde_studies.parts.figures import rank_agreement
from sonde_studies.recipes.class_panel import class_panel

RIGHT = (0.9, 0.35, 0.75, 0.55, 0.2, 1.0)
"""Share of each class that is answered rightly."""
PER_CLASS = 20


class Told(nn.Module):
    """Answers what the first pixel says, and looks at patches by their place and content."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.net = PatchAttention()
        for parameter in self.net.parameters():
            nn.init.normal_(parameter, std=0.7)

    def forward(self, x):
        said = (x[:, 0, 0, 0] * 10).round().long()
        return 5.0 * one_hot(said, 6) + 1e-3 * self.net(x)[:, :6]


def world(seed=0):
    draw = torch.Generator().manual_seed(seed)
    items = []
    for c, share in enumerate(RIGHT):
        for i in range(PER_CLASS):
            x = torch.rand(1, 16, 8, generator=draw)
            x[0, 0, 0] = (c if i < share * PER_CLASS else (c + 1 + i % 2) % 6) / 10
            top, left = (0.25 * int(torch.randint(0, 3, (), generator=draw)) for _ in range(2))
            items.append({"x": x, "label": c, "box": [top, left, top + 0.5, left + 0.25]})
    return items


def rows_of(found):
    return {int(row["class"]): row for row in found.rows}


@pytest.mark.slow
@pytest.mark.truth("scikit-learn's recall and precision, and counts of the training rows")
def test_scores_counts_and_the_reason_are_those_that_were_planted():
    items, counts = world(), [90, 30, 60, 50, 10, 200]
    train = [{"label": c} for c, n in enumerate(counts) for _ in range(n)]
    found = class_panel(Model(Told(0).eval()), items[::-1], train=train, progress=False)
    label = [item["label"] for item in items]
    said = [round(float(item["x"][0, 0, 0]) * 10) for item in items]
    table = rows_of(found)
    scores: list[Any] = [f(label, said, labels=[*range(6)], average=None)  # pyright: ignore
                         for f in (recall_score, precision_score)]  # fmt: skip
    recall, precision = scores
    for c in range(6):
        assert table[c]["recall"] == pytest.approx(recall[c])
        assert table[c]["precision"] == pytest.approx(precision[c])
        assert table[c]["rows"] == counts[c]
    assert next(row["class"] for row in found.rows) == "4"
    assert found.value == pytest.approx(np.mean(RIGHT) - 0.2)
    assert "fewer rows" in found.verdict
    assert "4" in found.sentence.split()[1]
    even = class_panel(Model(Told(0).eval()), items, progress=False)
    assert "fewer rows" not in even.verdict


@pytest.mark.truth("probabilities read by a tap, laid on the pixels of each box")
def test_the_look_is_the_attention_in_the_box_over_its_area():
    items, net = world(3), Told(5).eval()
    table = rows_of(class_panel(Model(net), items, progress=False))
    with Tap(net, "net.blocks.1.attention:probs") as tap, torch.no_grad():
        net(torch.stack([item["x"] for item in items]))
    (probs,) = tap.rows.values()
    token = probs.mean(1).unflatten(1, (4, 32)).mean(1).reshape(-1, 1, 8, 4)
    maps = interpolate(token, [16, 8], mode="bilinear", align_corners=False)[:, 0]
    look = []
    for item, one in zip(items, maps, strict=True):
        top, left, bottom, right = item["box"]
        part = one[int(16 * top) : int(16 * bottom), int(8 * left) : int(8 * right)]
        look.append(float(part.sum() / one.sum()) / 0.125)
    for c in range(6):
        own = np.mean(look[c * PER_CLASS : (c + 1) * PER_CLASS])
        assert table[c]["attention"] == pytest.approx(own, rel=1e-4)
    assert np.ptp([row["attention"] for row in table.values()]) > 0.01


@pytest.mark.truth("all orders counted by scipy's permutation test, and by hand")
def test_few_classes_that_agree_are_no_certainty():
    assert rank_agreement([1, 2, 3, 4], [5, 6, 8, 9], 4) == (1.0, pytest.approx(2 / 24))
    assert rank_agreement([3, 1, 2, 5, 4], [1, 2, 3, 4, 5])[1] == pytest.approx(
        permutation_test(
            ([3, 1, 2, 5, 4],), lambda x: spearmanr(x, range(5))[0], permutation_type="pairings"
        ).pvalue
    )


def test_boxes_that_are_none_are_refused():
    items = world()
    items[7] = items[7] | {"box": [0.5, 0.0, 0.2, 1.0]}
    with pytest.raises(InputError, match=r"top, left, bottom, right in \[0, 1\]"):
        class_panel(Model(Told(0).eval()), items, progress=False)
