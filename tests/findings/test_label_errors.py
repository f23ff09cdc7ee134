"""Wrong labels of arrays: features alone, probabilities alone, and what is refused."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_predict

from sonde.core.errors import InputError
from sonde.findings.label_errors import check_labels, read_arrays


def digits(n_wrong: int):
    """Return pixels of digits, their labels with some exchanged, and the exchanged rows."""
    x, y = load_digits(return_X_y=True)
    draw = np.random.default_rng(1)
    bad = draw.choice(len(y), n_wrong, replace=False)
    y = y.copy()
    y[bad] = (y[bad] + draw.integers(1, 10, n_wrong)) % 10
    return x, y, bad


def test_features_alone_tell_how_many_labels_are_wrong_and_which():
    x, y, bad = digits(120)
    found = check_labels({"X": x, "y": y})
    assert found.wrong.low <= 120 <= found.wrong.high
    assert found.wrong.number == pytest.approx(120, rel=0.12)
    assert np.isin(found.wrong.order[:120], bad).mean() > 0.9
    clean = check_labels({"X": x, "y": load_digits().target})
    assert clean.wrong.high < 0.01 * len(y)


@pytest.mark.slow
@pytest.mark.truth("the exchanged labels")
def test_the_interval_holds_the_number_also_for_folds_of_rows_in_their_order():
    """Neighbouring digits are of one writer, whom no other fold contains."""
    x, truth = load_digits(return_X_y=True)
    n_held = 0
    for seed in range(6):
        draw = np.random.default_rng(seed)
        rows = np.sort(draw.choice(len(truth), 900, replace=False))
        bad, y = draw.random(900) < 0.05, truth[rows]
        y = np.where(bad, (y + draw.integers(1, 10, 900)) % 10, y)
        model = LogisticRegression(max_iter=300)
        p = cross_val_predict(model, x[rows] / 16, y, cv=KFold(5), method="predict_proba")
        found = check_labels({"pred_probs": p, "y": y})
        n_held += found.wrong.low <= bad.sum() <= found.wrong.high
    assert n_held >= 5


def test_crowded_errors_and_the_assumption_are_said_in_words():
    draw = np.random.default_rng(0)
    p = draw.dirichlet([0.1, 0.1, 0.1], 400)
    y = np.array([draw.choice(3, p=row) for row in p])
    y[:40] = (y[:40] + 1) % 3
    said = " ".join(check_labels({"pred_probs": p, "y": y}).sentences())
    assert "Errors crowd in neighbouring rows" in said
    assert "p(wrong) assumes" in said


@pytest.mark.parametrize("name", ["group", "group_key", "id"])
def test_copies_in_one_group_do_not_vouch_for_each_other(name):
    """A wrong label is on both copies of a row: as groups they are found, as rows they are not."""
    x, y, bad = digits(90)
    both = {"X": np.repeat(x, 2, 0), "y": np.repeat(y, 2)}
    group = np.repeat(np.arange(len(y)), 2)
    keys = group[:, None].view(np.uint8) if name == "group_key" else group
    found = check_labels({**both, name: keys})
    assert np.isin(found.wrong.order[:180] // 2, bad).mean() > 0.9
    assert found.wrong.low <= 180 <= found.wrong.high


@pytest.mark.parametrize("named", [False, True])
def test_equal_rows_do_not_vouch_for_each_other_under_other_names_either(named):
    x, y, bad = digits(90)
    x = x + np.random.default_rng(0).normal(size=x.shape) / 100
    both = {"X": np.repeat(x, 2, 0), "y": np.repeat(y, 2)}
    found = check_labels({**both, "group": np.arange(2 * len(y))} if named else both)
    assert np.isin(found.wrong.order[:180] // 2, bad).mean() > 0.9
    assert found.wrong.low <= 180 <= found.wrong.high


@pytest.mark.parametrize("form", ["one-hot", "column", "names", "floats"])
def test_labels_of_every_form_give_the_same(form):
    x, y, _ = digits(120)
    forms = {"one-hot": np.eye(10)[y], "column": y[:, None], "floats": y.astype(float)}
    given = forms.get(form, np.array([*"abcdefghij"])[y])
    found = check_labels({"X": x, "y": given})
    assert found.wrong.order.tolist() == check_labels({"X": x, "y": y}).wrong.order.tolist()


def test_names_of_classes_and_rows_are_kept():
    p = np.array([[0.9, 0.1], [0.1, 0.9], [0.95, 0.05]])
    arrays = {"pred_probs": p, "y": np.array(["cat", "dog", "dog"]), "id": np.array([*"abc"])}
    first = check_labels(arrays).rows()[0]
    assert (first["id"], first["label"], first["looks_like"]) == ("c", "dog", "cat")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"X": np.ones((3, 2))}, "a label for each row"),
        ({"y": np.zeros(3, int)}, "one array of features, got none"),
        ({"X": np.ones((0, 2)), "y": np.zeros(0, int)}, "array of labels is empty"),
        ({"a": np.ones((3, 2)), "b": np.ones((3, 2)), "y": np.zeros(3, int)}, "--features"),
        ({"X": np.full((3, 2), np.nan), "y": np.zeros(3, int)}, "finite features"),
        ({"X": np.ones((9, 2)), "y": np.array([0] * 8 + [1])}, "in two folds"),
        ({"X": np.ones((3, 2)), "y": np.array([0, 1, np.nan])}, "1 NaN in 3 labels"),
        ({"X": np.ones((0, 2)), "y": np.zeros(0, int)}, "a label for each row"),
        ({"X": np.ones((3, 2)), "y": np.zeros(3, int), "group": np.zeros(2)}, "one group for"),
        ({"X": np.ones((3, 2)), "y": np.zeros(3, int), "id": np.zeros(2)}, "one id for each"),
        ({"X": np.full((3, 2), "a"), "y": np.zeros(3, int)}, "finite features"),
        ({"X": np.ones((3, 2)), "y": np.zeros(2, int)}, "features for each of 2 labels"),
        ({"X": np.ones((3, 2)), "y": np.array([0, 1, -1])}, "1 of 3 rows with -1"),
        ({"X": np.ones((3, 2)), "y": np.array([0.5, 0.2, 1.0])}, "numbers that are not whole"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays, words):
    with pytest.raises(InputError, match=words):
        check_labels(arrays)


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="cannot be read"):
        read_arrays(tmp_path / "a.npz")


def test_floats_of_sixteen_bits_are_read(tmp_path):
    x, y, _ = digits(0)
    arrays = {"X": torch.as_tensor(x).bfloat16(), "y": torch.as_tensor(y)}
    save_file(arrays, tmp_path / "a.safetensors")
    read = read_arrays(tmp_path / "a.safetensors")
    assert np.array_equal(read["X"], x)
    assert np.array_equal(read["y"], y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exported_states_are_read_with_the_texts_of_their_rows(tmp_path, dtype):
    """An export holds texts as rows of bytes."""
    x, label = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    x[:, 0] = 4.0 * label
    ids = torch.tensor([[ord("r"), 48 + i // 10, 48 + i % 10] for i in range(40)]).to(torch.uint8)
    arrays = {"x": x.to(dtype), "label": label, "id": ids, "group": ids.clone(), "row": label + 1}
    save_file(arrays, tmp_path / "a.safetensors")
    np.savez(
        tmp_path / "a.npz",
        x=x.to(dtype).float(),
        label=label,
        **{name: ids.numpy().reshape(-1).view("S3") for name in ("id", "group")},
    )
    one, two = (check_labels(read_arrays(tmp_path / f"a.{end}")) for end in ("safetensors", "npz"))
    assert one.rows() == two.rows()
    assert sorted(row["id"] for row in one.rows())[:2] == ["r00", "r01"]
