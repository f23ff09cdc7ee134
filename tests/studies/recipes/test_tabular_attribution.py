"""A sum with known weights, a model that uses nothing, and deletion counted by hand."""

import pytest
import torch
from torch import nn

from cli_case import run_words
from sonde import InputError, Model
from sonde_studies.recipes.tabular_attribution import tabular_attribution

WEIGHT = [3.0, -0.4, 0.0, 1.5, -2.2]


def linear(weight):
    net = nn.Linear(len(weight), 1)
    net.weight.data, net.bias.data = torch.tensor([weight]), torch.tensor([0.7])
    return Model(net.eval())


def table(n=120):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(8)) + 2


@pytest.mark.truth("a sum: the share of a column is its weight times its mean distance")
def test_shares_of_a_sum_are_its_weights():
    x = table()
    found = tabular_attribution(linear(WEIGHT), [{"x": row} for row in x], progress=False)
    want = (x - x.mean(0)).abs().mean(0) * torch.tensor(WEIGHT).abs()
    want = want / want.sum()
    rows = {row["column"]: row for row in found.rows}
    for i in range(5):
        for method in ("integrated gradients", "Shapley", "column at its mean"):
            assert rows[f"column {i}"][method] == pytest.approx(float(want[i]), abs=2e-3)
        assert rows[f"column {i}"]["permutation"] == pytest.approx(float(want[i]), abs=0.04)
    assert found.verdict == "trust it"
    assert "column 0, column 4, column 3" in found.sentence


@pytest.mark.truth("columns put at their mean one by one, by hand")
def test_the_area_is_that_of_columns_at_their_mean():
    x = table()
    found = tabular_attribution(linear(WEIGHT), [{"x": row} for row in x], progress=False)
    weight, total = torch.tensor(WEIGHT), 0.0
    spread, gone = (x @ weight).std(), torch.zeros(5, dtype=torch.bool)
    for column in (0, 4, 3, 1, 2):
        gone[column] = True
        moved = ((x - x.mean(0)) * gone) @ weight
        total += float((moved.abs() / spread).mean()) / 5
    assert float(found.facts["deletion, Shapley"]) == pytest.approx(total, abs=1e-3)


def test_a_ranking_of_noise_is_not_trusted():
    torch.manual_seed(0)
    same = linear([1.0, 1.0, 1.0, 1.0, 1.0])
    found = tabular_attribution(same, [{"x": row} for row in table(60)], progress=False)
    assert found.level == "warning"


def test_names_come_from_the_file(tmp_path, monkeypatch):
    (tmp_path / "nets_of_a_table.py").write_text(
        "import torch\n\n\ndef sums():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Linear(3, 2).eval()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = "".join(f"{i % 7 / 7},{i % 5 / 5},{i % 3 / 3},{i % 2}\n" for i in range(50))
    (tmp_path / "rows.csv").write_text(f"age,weight,height,label\n{rows}")
    ran = run_words("recipe", "tabular-attribution", "nets_of_a_table:sums",
                    tmp_path / "rows.csv", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert {row["column"] for row in ran.json()["rows"]} == {"age", "weight", "height"}


def test_few_rows_are_refused():
    with pytest.raises(InputError, match="40 or more rows"):
        tabular_attribution(linear(WEIGHT), [{"x": row} for row in table(20)], progress=False)
