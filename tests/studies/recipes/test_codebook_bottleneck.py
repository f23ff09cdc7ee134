"""Codes of planted clusters, bad columns, and the command."""

import pytest
import torch
from torch import nn

from cli_case import run_words
from sonde import InputError, Model
from sonde_studies.recipes.codebook_bottleneck import codebook_bottleneck


def clusters(n=300):
    """Return rows in six clusters: the pair of clusters is one factor, the place in it another."""
    draw = torch.Generator().manual_seed(4)
    kind = torch.randint(0, 6, (n,), generator=draw)
    centre = torch.tensor([[0.0, 9], [0, 11], [40, 9], [40, 11], [80, 9], [80, 11]])
    x = centre[kind] + 0.1 * torch.randn(n, 2, generator=draw)
    noise = torch.randint(0, 2, (n,), generator=draw)
    return [
        {"x": row, "wide": str(int(k) // 2), "narrow": int(k) % 2, "noise": int(m)}
        for row, k, m in zip(x, kind, noise, strict=True)
    ]


@pytest.mark.truth("clusters whose factors need three codes and six")
def test_each_factor_needs_as_many_codes_as_its_clusters():
    net = Model(nn.Sequential(nn.Identity()).eval())
    found = codebook_bottleneck(
        net, clusters(), factors=("wide", "narrow", "noise"), sizes=(3, 6), site="0", progress=False
    )
    kept = {(r["factor"], r["codes"]): r["accuracy"] for r in found.rows}
    assert kept["wide", 3] == 1.0
    assert kept["narrow", 3] < 0.7
    assert kept["narrow", 6] == 1.0
    assert "wide needs 3, narrow needs 6" in found.sentence
    assert "noise needs" not in found.sentence
    (bits,) = {r["bits"] for r in found.rows if r["codes"] == 6}
    assert 2.4 < bits <= 2.5850
    assert found.value == 6


def test_a_column_that_is_missing_is_named():
    net = Model(nn.Sequential(nn.Identity()).eval())
    with pytest.raises(InputError, match="the columns colour in every row"):
        codebook_bottleneck(net, [{"x": r["x"]} for r in clusters()], factors=("colour",),
                            site="0", progress=False)  # fmt: skip


def test_the_command_asks_it():
    ran = run_words("recipe", "codebook-bottleneck", "sonde:digits", "sonde:digits/test",
                    "--sizes", "4", "12", "--limit", "120", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    assert [row["codes"] for row in ran.json()["rows"]] == [None, 4, 12]
