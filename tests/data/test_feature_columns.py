"""Which columns of a CSV are features, and a label column that is named and empty."""

import pytest

from cli_case import run_words

NET = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU()).eval()
"""


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "feature_net.py").write_text(NET)
    lines = [f"{i % 7},{i % 5},{i},A," for i in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,serial,sensor,kind", *lines]))
    return "feature_net:make", tmp_path / "rows.csv"


@pytest.mark.parametrize("flags", [
    ("--feature-columns", "a,b"),
    ("--ignore-column", "serial,sensor,kind"),
])  # fmt: skip
def test_the_named_columns_are_the_features(words, flags):
    ran = run_words("fit", "knn(k=2)", *words, *flags, "-o", "p.sonde")
    assert ran.code == 0, ran.err
    assert "2 columns of numbers are read as one vector: a, b." in ran.err


def test_a_label_column_that_is_empty_is_an_error(words):
    for command in (("fit", "knn"), ("scan",)):
        said = run_words(
            *command, *words, "--label-column", "kind", "--ignore-column", "sensor"
        ).error()
        assert "column 'kind' gives no label: every value is empty, null or -1" in said
