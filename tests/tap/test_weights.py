"""Parameters as rows of a stream that needs no data."""

from typing import Any

import pytest
import torch
from torch import nn

import models
import sonde
from sonde.cli import main
from sonde.core.errors import InputError, SiteError
from sonde.measure import Spectrum
from sonde.tap import Tap, live_stream, weight_stream
from tap_inputs import Texts

SITE = "layers.1.mlp.down_proj:weight"


@pytest.mark.truth("numpy's eigenvalues of the covariance of the weight's rows")
def test_the_spectrum_of_a_weight_is_fitted_without_data():
    model = models.llama()
    fitted = sonde.fit([Spectrum()], sonde.read(model, sites=SITE))
    weight = model.model.layers[1].mlp.down_proj.weight.detach().double()
    expected = torch.linalg.eigvalsh(torch.cov(weight.T, correction=0)).flip(0)[:31]
    (result,) = dict(fitted).values()
    found = torch.as_tensor(result.value)
    assert found.shape == (31,)
    torch.testing.assert_close(found[:20], expected[:20], rtol=1e-5, atol=1e-9)


def test_rows_are_what_makes_one_output_and_parameters_of_any_size_go_together():
    net: Any = nn.Sequential(nn.Conv2d(3, 5, 2), nn.ConvTranspose2d(5, 4, 2), nn.Linear(300, 7))
    conv, back, linear = (net[i].weight.detach() for i in range(3))
    batches = list(weight_stream(net, ["*:weight", "0:weight.bias"]))
    rows = {key: torch.cat([b.rows[key] for b in batches]) for key in batches[0].rows}
    assert torch.equal(rows["0:weight"], conv.flatten(1))
    assert torch.equal(rows["1:weight"], back.transpose(0, 1).flatten(1))
    assert torch.equal(rows["2:weight"], linear)
    assert torch.equal(rows["0:weight.bias"], net[0].bias.detach()[None])
    gpt2: Any = models.gpt2()
    (batch,) = weight_stream(gpt2, "h.0.attn.c_attn:weight")
    (made,) = batch.rows.values()
    assert torch.equal(made, gpt2.transformer.h[0].attn.c_attn.weight.detach().T)


def test_the_same_rows_of_two_models_are_the_same_examples():
    first, second = (models.llama() for _ in range(2))
    with torch.no_grad():
        second.model.layers[1].mlp.down_proj.weight[3] += 1.0
    (a,), (b,) = (weight_stream(m, SITE) for m in (first, second))
    assert list(a.keys) == list(b.keys)
    (x,), (y,) = a.rows.values(), b.rows.values()
    assert (y - x).norm(dim=1).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ("blocks:weight", r"expected a parameter 'weight' .* at 'model\.layers\.0'"),
        ([SITE, "blocks"], "rows are examples. Read weights in a separate stream"),
        (SITE + ".bias", r"expected a parameter 'bias' .*got none.*module: weight"),
    ],
)
def test_what_is_no_parameter_is_refused(sites, message):
    with pytest.raises(SiteError, match=message):
        sonde.read(models.llama(), sites=sites)


def test_weights_are_no_states():
    model = models.llama()
    with pytest.raises(InputError, match="read without data"):
        sonde.read(model, "sonde:stdlib/test", sites=SITE)
    with pytest.raises(InputError, match="leave out reducer, which only states can have"):
        sonde.read(model, sites=SITE, reducer="mean")
    with pytest.raises(SiteError, match="expected states of a forward pass, got parameters"):
        Tap(model, SITE)
    with pytest.raises(SiteError, match="expected states of a forward pass, got parameters"):
        _ = live_stream(model, Texts([[3, 4]]), SITE).schema


def test_the_command_line_reads_weights_without_data(tmp_path, capsys):
    out = str(tmp_path / "w.sonde")
    assert (
        main(
            ["fit", "stable_rank", "sonde:digits", "--sites", "layers.*.mlp.fc1:weight", "-o", out]
        )
        == 0
    )
    assert "weight" in capsys.readouterr().out


@pytest.mark.truth("the parameter itself")
def test_the_command_line_writes_weights_as_rows(tmp_path, capsys):
    """Parameters are rows of a folder, and some of these of another."""
    some, other = str(tmp_path / "some"), str(tmp_path / "other")
    words = ["read", "sonde:digits", "--sites", "layers.*.mlp.fc1:weight", "-o", some]
    assert main(words) == 0, capsys.readouterr().err
    assert len(sonde.read(some).schema) == 4
    key = "vit.layers.1.mlp.fc1:weight"
    assert main(["read", some, "--sites", key, "-o", other]) == 0, capsys.readouterr().err
    batches = list(sonde.read(other))
    assert [*batches[0].rows] == [key]
    weight = sonde.load("sonde:digits").module.get_parameter(key.replace(":", "."))
    assert torch.equal(torch.cat([b.rows[key] for b in batches]), weight.detach())
