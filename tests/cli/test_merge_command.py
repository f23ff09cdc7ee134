"""``sonde merge``: only what was asked for alike is added up; else nothing is left behind."""

import pytest

from sonde.core.plan import STATE_VERSION
from sonde.files.state_file import read_header, write_state
from sonde.run.fitting.fitted import Fitted


@pytest.fixture(scope="module")
def parts(place, tmp_path_factory):
    from cli_case import run_words

    folder = tmp_path_factory.mktemp("merge")
    fits = {
        "a": ("knn(k=5)", "plain.npz"),
        "b": ("knn(k=5)", "more.npz"),
        "k": ("knn(k=7)", "more.npz"),
        "m": ("mahalanobis", "more.npz"),
        "s": ("knn(k=5)", "rows.npz"),
        "w": ("knn(k=5)", "narrow.npz"),
    }
    for name, (method, data) in fits.items():
        ran = run_words("fit", method, "-", place / data, "-o", folder / f"{name}.sonde", "--quiet")
        assert ran.code == 0, ran.err
    header = read_header(folder / "b.sonde") | {"version": STATE_VERSION + 1}
    write_state(folder / "v.sonde", header, Fitted.load(folder / "b.sonde").states)
    return folder


def test_two_parts_are_added_up(run, parts):
    ran = run("merge", parts / "a.sonde", parts / "b.sonde", "-o", parts / "both.sonde", "--json")
    assert ran.code == 0, ran.err
    assert ran.json()["data"]["n_examples"] == 240
    (parts / "both.sonde").unlink()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("k", ["KNN(k=5", "KNN(k=7", "same methods and parameters"]),
        ("m", ["different states", "same instruments"]),
        ("s", ["different states", "sites"]),
        ("w", ["different states", "sites"]),
        ("a", ["twice"]),
        ("v", [f"version {STATE_VERSION}", f"version {STATE_VERSION + 1}"]),
    ],
)
def test_what_does_not_fit_together_is_refused(run, parts, other, said):
    before = sorted(parts.iterdir())
    line = run("merge", parts / "a.sonde", parts / f"{other}.sonde", "-o", parts / "c.sonde")
    assert all(word in line.error() for word in said), line.err
    assert sorted(parts.iterdir()) == before
