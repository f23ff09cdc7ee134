"""Tuning parts of a net: what moves and what does not, labels that cannot be learned."""

import pytest
import torch
from torch import nn

from cli_case import run_words
from sonde import InputError, Model
from sonde_studies.recipes.tune_norms import tune_norms


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.Tanh()) for _ in range(2)
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def domains(noise=False, n=260):
    """Return a net, an old domain that it names, and a new domain of opposite sign."""
    torch.manual_seed(2)
    net, x = Blocks(), torch.randn(n, 6)
    with torch.no_grad():
        label = net(x).argmax(1)
    new = torch.randint(0, 3, (n,)) if noise else label
    target = [{"x": -row, "label": int(c)} for row, c in zip(x, new, strict=True)]
    source = [{"x": row, "label": int(c)} for row, c in zip(x, label, strict=True)]
    return Model(net.eval()), target, source


@pytest.mark.slow
@pytest.mark.truth("parameters counted by hand; what stands before all that moves cannot move")
def test_only_the_named_parameters_move():
    model, target, source = domains()
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    found = tune_norms(model, target, source, epochs=8, rate=0.01, progress=False)
    row = {r["moved"]: r for r in found.rows}
    n = 2 * (12 + 42) + 21
    assert row["norms"]["share"] == pytest.approx(24 / n)
    assert row["biases"]["share"] == pytest.approx((2 * 12 + 3) / n)
    assert row["the last block"]["share"] == pytest.approx((54 + 21) / n)
    assert row["the last block"]["CKA blocks.0:out"] == pytest.approx(1.0)
    assert row["the last block"]["CKA blocks.1:out"] < 0.999
    assert row["before"]["old domain"] == 1.0
    assert row["all"]["new domain"] > row["before"]["new domain"] + 0.2
    assert found.level == "clear"
    after = model.module.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


@pytest.mark.slow
@pytest.mark.truth("labels of chance on rows that did not train")
def test_noise_is_no_gain_on_rows_that_did_not_train():
    model, target, source = domains(noise=True)
    found = tune_norms(model, target, source, epochs=30, rate=0.02, progress=False)
    assert found.verdict == "no gain"
    assert all(abs(row["new domain"] - 1 / 3) < 0.15 for row in found.rows)


@pytest.mark.slow
@pytest.mark.truth("labels of the net itself, on rows that were moved")
def test_a_plain_sequential_has_no_last_block_and_is_tuned_in_the_rest():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 3)).eval()
    x = torch.randn(240, 6)
    label = net(x).argmax(1).tolist()
    parts = [[{"x": r, "label": c} for r, c in zip(x + by, label, strict=True)] for by in (2.0, 0)]
    found = tune_norms(Model(net), *parts, epochs=6, rate=0.01, progress=False)
    assert [row["moved"] for row in found.rows] == ["before", "norms", "biases", "all"]
    assert found.verdict.startswith("tune ")


def test_rows_without_labels_are_refused():
    model, target, source = domains()
    with pytest.raises(InputError, match="all of them labelled"):
        tune_norms(model, target, [{"x": r["x"]} for r in source], progress=False)


@pytest.mark.slow
def test_the_command_asks_it():
    ran = run_words("recipe", "tune-norms", "sonde:digits", "sonde:digits/train",
                    "sonde:digits/test", "--limit", "90", "--epochs", "1", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert {row["moved"] for row in ran.json()["rows"]} >= {"before", "norms", "all"}
