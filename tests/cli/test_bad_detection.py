"""What people get wrong with detectors: one line and exit code 2, or what they lose is said."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows of three classes with and without faults, and small images."""
    place = tmp_path_factory.mktemp("detection")
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 300)
    a = (rng.normal(size=(300, 5)) + label[:, None]).astype("f4")
    np.savez(place / "rows.npz", a=a, label=label)
    np.savez(place / "one_class.npz", a=a, label=0 * label)
    np.savez(place / "unseen.npz", a=a[:60], label=np.full(60, 7))
    np.savez(place / "fractions.npz", a=a, label=label + 0.5)
    np.savez(place / "constant.npz", a=np.ones((60, 5), "f4"))
    np.savez(place / "equal.npz", a=np.repeat(a[:40], 8, 0))
    np.savez(place / "wide.npz", a=rng.normal(size=(40, 64)).astype("f4"))
    np.savez(place / "fresh.npz", a=a + 0.01, label=label)
    a[5, 2] = np.nan
    np.savez(place / "nan.npz", a=a, label=label)
    np.savez(place / "few.npz", a=a[20:32] + 0.01, label=label[20:32])
    x = rng.random((40, 3, 8, 8)).astype("f4")
    np.savez(place / "coloured.npz", x=x)
    np.savez(place / "flat.npz", x=x[:, 0])
    np.savez(place / "twelve.npz", x=x[:, :1], label=np.full(40, 12))
    (place / "empty.jsonl").write_text('{"id": "a", "steps": []}\n')
    (place / "textless.jsonl").write_text('{"id": "a", "steps": [{"text": ""}]}\n')
    return place


@pytest.fixture
def fitted(run, folder, tmp_path):
    """A probe of two detectors."""
    probe = tmp_path / "probe.sonde"
    words = "fit mahalanobis,relative_mahalanobis - rows.npz"
    assert run(*in_folder(words, folder), "-o", probe).code == 0
    return probe


def in_folder(words, folder):
    return [folder / w if w.endswith((".npz", ".jsonl")) else w for w in words.split()]


REFUSED = {
    "one class": ("fit relative_mahalanobis - one_class.npz", "at least two classes, got 1"),
    "no label that is a class": ("fit relative_mahalanobis - fractions.npz", "expected labels"),
    "constant rows": ("fit mahalanobis,knn - constant.npz", "equal rows, stay in one part"),
    "coloured images": ("fit msp sonde:digits coloured.npz", r"(1, 3, 8, 8)"),
    "images without channels": ("fit msp sonde:digits flat.npz", r"(1, 8, 8)"),
    "an empty trajectory": (
        "fit trajectory_verifier sonde:stdlib empty.jsonl --sites model.layers.3",
        "step",
    ),
    "steps without text": (
        "fit trajectory_verifier sonde:stdlib textless.jsonl --sites model.layers.3",
        "step",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(run, folder, tmp_path, case):
    words, said = REFUSED[case]
    line = run(*in_folder(words, folder), "-o", tmp_path / "out.sonde").error()
    assert said in line, line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_classes_that_were_not_fitted_are_compared_with_all(run, folder, fitted, tmp_path):
    words = ["calibrate", fitted, "-", folder / "fresh.npz", "--by", "label"]
    assert run(*words, "-o", tmp_path / "by.sonde").code == 0
    scored = run("score", tmp_path / "by.sonde", "-", folder / "unseen.npz", "--json")
    assert scored.code == 0
    assert all(0 < row["p"] <= 1 for row in scored.json())


def test_fractions_are_no_labels_and_that_is_said(run, folder, tmp_path):
    ran = run("fit", "knn", "-", folder / "fractions.npz", "-o", tmp_path / "p.sonde")
    assert ran.code == 0
    assert "column 'label' holds numbers that are not whole, so it is not a label" in ran.err
    np.savez(tmp_path / "f8.npz", a=np.eye(40), label=np.arange(40) % 2 * 1.0)
    assert run("fit", "class_separability", "-", tmp_path / "f8.npz").code == 0


@pytest.mark.slow
def test_labels_that_are_not_the_models_own_are_said(run, folder, tmp_path):
    ran = run("fit", "mahalanobis", "sonde:digits", folder / "twelve.npz",
              "-o", tmp_path / "p.sonde")  # fmt: skip
    assert ran.code == 0
    assert "not the model's own classes" in ran.out + ran.err


def test_rows_that_are_not_finite_are_counted(run, folder, fitted):
    ran = run("score", fitted, "-", folder / "nan.npz")
    assert "note: mahalanobis at a, relative_mahalanobis at a: 1 of 300 scores are inf" in ran.err


@pytest.mark.slow
def test_too_few_calibrated_rows_for_the_level_are_said(run, folder, fitted, tmp_path):
    few = tmp_path / "few.sonde"
    ran = run("calibrate", fitted, "-", folder / "few.npz", "--alpha", "0.001", "-o", few)
    assert "too few" in ran.out
    assert "alarms at 0.001 need at least 999 calibration rows, got 12" in ran.err
    assert "no alarms" in ran.out
    assert "0.0%-0.0%" not in ran.out
    ran = run("score", few, "-", folder / "rows.npz", "--alpha", "0.001")
    assert (
        "no p-value can be 0.001 or less: with this number of calibration rows, the smallest is"
        in ran.err
    )
    assert "too few" in ran.out
    ran = run("score", few, "-", folder / "rows.npz", "--alpha", "0.001", "--each")
    assert "p <= 0.001 needs at least 999 calibration rows, got 12" in ran.err
    assert "--alarm" in ran.err
    assert "too few" in ran.out
    assert "0.0%" not in ran.out
    run("calibrate", fitted, "-", folder / "few.npz", "--guarantee", "pac", "-o", few)
    ran = run("score", few, "-", folder / "rows.npz", "--alpha", "0.1", "--each")
    assert "p <= 0.1 needs at least 29 calibration rows, got 12" in ran.err


@pytest.mark.truth("by hand: 40 rows of one class, 3 of each of eight")
def test_many_classes_that_lack_rows_are_one_line(run, fitted, tmp_path):
    label = np.repeat(np.arange(9), [40, *[3] * 8])
    rows = np.random.default_rng(4).normal(size=(len(label), 5)).astype("f4")
    np.savez(tmp_path / "many.npz", a=rows, label=label)
    words = ("calibrate", fitted, "-", tmp_path / "many.npz", "--by", "label")
    ran = run(*words, "-o", tmp_path / "c.sonde")
    lines = [line.split()[2:] for line in ran.out.splitlines() if line.startswith("mahalanobis ")]
    assert [line[:2] for line in lines] == [["all", "64"], ["0", "40"], ["8", "others"]]
    assert lines[2] == ["8", "others", "24", "too", "few", "no", "alarms"]
    assert "got 3 of class 1, and too few of 7 other classes" in ran.err
    assert len(run(*words, "-o", tmp_path / "c.sonde", "--json").json()["rows"]) == 2 * 10


def test_rows_that_are_not_finite_leave_no_alarm_and_that_is_said(run, folder, fitted, tmp_path):
    rows = np.random.default_rng(3).normal(size=(60, 5)).astype("f4")
    rows[:6, 0] = np.nan
    np.savez(tmp_path / "bad.npz", a=rows)
    ran = run("calibrate", fitted, "-", tmp_path / "bad.npz", "-o", tmp_path / "c.sonde", "--json")
    assert "more than 0.05 of the calibration rows are not finite" in ran.err
    assert {row["threshold"] for row in ran.json()["rows"]} == {None}


def test_features_of_another_model_are_refused(run, folder, fitted):
    assert "got dim=64" in run("score", fitted, "-", folder / "wide.npz").error()


@pytest.mark.truth("planted: rows outside the span of the fitted ones")
def test_more_dimensions_than_rows_are_scored(run, folder, tmp_path):
    probe = tmp_path / "wide.sonde"
    assert run("fit", "mahalanobis,knn", "-", folder / "wide.npz", "-o", probe).code == 0
    scores = run("score", probe, "-", folder / "wide.npz", "--each", "--json").json()
    assert all(np.isfinite(row["score"]) for row in scores)


def test_equal_rows_stay_in_one_part(run, folder, tmp_path):
    probe = tmp_path / "equal.sonde"
    assert run("fit", "mahalanobis,knn", "-", folder / "equal.npz", "-o", probe).code == 0
    rows = run("score", probe, "-", folder / "equal.npz", "--each", "--json").json()
    by_id: dict[tuple[str, str], set[float]] = {}
    for row in rows:
        by_id.setdefault((row["instrument"], row["id"]), set()).add(row["score"])
    assert len(by_id) == 80
    assert all(len(scores) == 1 for scores in by_id.values())


@pytest.mark.slow
def test_a_probe_of_float32_for_a_model_in_bfloat16_is_refused(run, tmp_path):
    probe = tmp_path / "p.sonde"
    data = ["sonde:digits", "sonde:digits/test", "--limit", "60"]
    assert run("fit", "mahalanobis", *data, "-o", probe).code == 0
    line = run("score", probe, *data, "--dtype", "bfloat16").error()
    assert "dtype is 'bfloat16' here and was 'float32'" in line


@pytest.mark.slow
@pytest.mark.parametrize("method", ["costarr", "she"])
@pytest.mark.parametrize("labels", [[12], [0, 1, 12], [0, 1, -5]])
def test_labels_that_are_no_classes_of_the_model_are_refused_where_they_are_compared(
    run, tmp_path, method, labels
):
    x = np.random.default_rng(0).random((30, 1, 8, 8)).astype("f4")
    np.savez(tmp_path / "x.npz", x=x, label=np.resize(labels, 30))
    words = ["sonde:digits", tmp_path / "x.npz", "-o", tmp_path / "probe.sonde"]
    line = run("fit", method, *words).error()
    assert "expected labels that are the model's classes" in line
    assert str(labels[-1]) in line
    assert run("fit", "msp", *words).code == 0
