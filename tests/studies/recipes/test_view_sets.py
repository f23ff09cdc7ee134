"""Sets of views: a class that only several views tell, copies of a view, and heads by hand."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch import nn

from sonde import InputError, Model
from sonde_studies.recipes.view_sets import view_sets

IDENTITY = Model(nn.Sequential(nn.Identity()).eval())


def sets(n=240, views=4, noise=2.0, copies=False):
    """Return views that say their class weakly, each with noise of its own."""
    draw = torch.Generator().manual_seed(6)
    label = torch.randint(0, 3, (n,), generator=draw)
    x = torch.eye(5)[label][:, None] + noise * torch.randn(n, views, 5, generator=draw)
    x = x[:, :1].expand_as(x) if copies else x
    rows = [{"view": v, "set": f"thing {i}", "label": int(label[i])}
            for i in range(n) for v in x[i]]  # fmt: skip
    return x, label, rows


def asked(rows, **options):
    return view_sets(IDENTITY, rows, site="0", seed=2, progress=False, **options)


@pytest.mark.slow
@pytest.mark.truth("heads of scikit-learn on means of the views, fitted by hand")
def test_the_mean_is_judged_as_by_hand():
    x, label, rows = sets()
    found = {row["join"]: row for row in asked(rows).rows}
    # things are sorted by name; which views are first follows from the seed
    names = sorted(f"thing {i}" for i in range(240))
    order = np.array([int(name.split()[1]) for name in names])
    draw = np.random.default_rng(2)
    place = {f"thing {i}": 4 * i + np.arange(4) for i in range(240)}
    flat = x.flatten(0, 1).double()
    views = torch.stack([flat[draw.permutation(place[name])] for name in names])
    kind = label.numpy()[order]
    kept, held = train_test_split(
        np.arange(240), test_size=0.4, stratify=[str(c) for c in kind], random_state=2
    )
    kept, held = np.sort(kept), np.sort(held)
    views = (views - views[kept].mean((0, 1))) / views[kept].std((0, 1))
    train = np.concatenate([views[kept][:, :k].mean(1).numpy() for k in range(1, 5)])
    scale, shift = train.std(0), train.mean(0)
    head = LogisticRegression(C=0.1, max_iter=500).fit(
        (train - shift) / scale, np.tile(kind[kept], 4)
    )
    said = head.predict((views[held].mean(1).numpy() - shift) / scale)
    assert found["mean"]["4 views"] == pytest.approx((said == kind[held]).mean())
    assert found["mean"]["4 views"] > found["mean"]["1 view"] + 0.05


@pytest.mark.slow
@pytest.mark.truth("copies of a view hold what one holds")
def test_copies_add_nothing():
    answer = asked(sets(copies=True)[2])
    assert answer.verdict == "a single view will do"
    for row in answer.rows:
        if row["join"] in ("mean", "vote"):
            assert row["1 view"] == row["4 views"]
        assert row["4 views"] == pytest.approx(row["1 view"], abs=0.08)


def test_an_empty_view_is_refused():
    items = sets()[2]
    items[7] = items[7] | {"view": torch.full((5,), float("nan"))}
    with pytest.raises(InputError, match=r"column 'view' .* first in row 7"):
        asked(items)


def test_things_of_two_classes_and_single_views_are_refused():
    _, _, rows = sets(60)
    with pytest.raises(InputError, match="1 things of several classes"):
        asked([*rows[:-1], rows[-1] | {"label": (rows[-1]["label"] + 1) % 3}])
    with pytest.raises(InputError, match="rows without object"):
        asked(rows, set_column="object")
