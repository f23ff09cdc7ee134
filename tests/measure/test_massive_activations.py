import math
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import sonde
from sonde.core.errors import InputError, SondeWarning
from sonde.detect import MSP, PaDiM
from sonde.engine.running import Running
from sonde.measure import MassiveActivations, Spectrum, massive_activations
from sonde.measure.massive_activations import MassiveActivationsResult
from sonde.run.instruments.asked import asked


def _rows():
    return torch.randn(1000, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.truth("definition on all rows in memory")
def test_ratio():
    x = _rows().relu()
    x[5, 11] = 4000.0
    result = massive_activations(x)
    rms = x.square().mean(0).sqrt()
    assert result.value == pytest.approx(4000.0 / float(rms.median()), rel=1e-9)
    assert torch.nonzero(result.massive).flatten().tolist() == [11]
    assert not bool(result.constant.any())


def test_a_bias_is_called_constant():
    x = _rows()
    x[:, 3] += 3000.0
    result = massive_activations(x)
    assert torch.nonzero(result.constant).flatten().tolist() == [3]
    assert result.outlier_units


@pytest.mark.truth("simulated normal rows")
def test_healthy_rows_are_near_the_null():
    result = massive_activations(_rows())
    assert result.value == pytest.approx(result.null, rel=0.15)
    assert not bool(result.massive.any())
    assert not result.outlier_units


@pytest.mark.truth("shares of the energy, planted")
@pytest.mark.parametrize(("share", "is_outlier"), [(0.6, False), (0.9, True)])
def test_outlier_units_hold_twenty_times_their_fair_share(share, is_outlier):
    x = torch.ones(4, 30, dtype=torch.float64)  # twenty times a fair share is 2 / 3
    x[:, 7] = math.sqrt(29 * share / (1 - share))
    result = massive_activations(x)
    assert result.share == pytest.approx(share)
    assert result.outlier_units == is_outlier


def test_dead_units_do_not_move_the_median():
    x = _rows()
    want = massive_activations(x[:, 120:]).value
    x[:, :120] = 0.0
    assert massive_activations(x).value == pytest.approx(want)


def test_all_zero_is_nan_and_dead():
    result = massive_activations(torch.zeros(4, 3))
    assert math.isnan(result.value)
    assert result.flags == ("dead",)


def test_wrong_threshold_is_named():
    with pytest.raises(InputError, match="MassiveActivations: expected threshold above 0"):
        MassiveActivations(threshold=0.0)


@pytest.mark.truth("argmax over all rows in memory; the first of equal values by hand")
def test_where_the_largest_values_stand():
    x = _rows()
    position = torch.arange(1000) % 50
    x[7, 3], x[57, 5], x[30, 5] = 9000.0, 8000.0, -8000.0
    result = MassiveActivations().fit(x, position=position)
    assert torch.equal(result.position[:3], position[x.abs().argmax(0)][:3])
    places = [(row["unit"], row["position"]) for row in result.table().to_pylist()]
    assert places == [(3, 7), (5, 7)]
    assert massive_activations(_rows()).table().num_rows == 1
    halves = [Running(MassiveActivations()), Running(MassiveActivations())]
    for running, part in zip(halves, (slice(500, None), slice(0, 500)), strict=True):
        running.update(x[part], position=position[part])
    halves[0].merge(halves[1])
    merged = halves[0].result()
    assert isinstance(merged, MassiveActivationsResult)
    assert torch.equal(merged.position, result.position)
    assert merged.value == pytest.approx(result.value)


@pytest.mark.truth("where it was planted")
def test_rows_of_single_positions_show_what_pooled_ones_hide():
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 50,
        "n_positions": 16,
        "n_embd": 32,
        "n_layer": 1,
        "n_head": 2,
    }
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    with torch.no_grad():
        model.transformer.wpe.weight[2, 17] = 5000.0
    items = [{"input_ids": [(i * k) % 50 for k in range(8)]} for i in range(1, 30)]
    site = "transformer.h.0"
    with pytest.warns(SondeWarning, match="the reducer 'last' averages over tokens"):
        pooled = sonde.fit(
            MassiveActivations(), sonde.read(model, items, sites=site), progress=False
        )
    assert pooled.result("massive_activations").value < 100.0
    each = sonde.read(model, items, site, **MassiveActivations().reading())
    found = sonde.fit(MassiveActivations(), each, progress=False).result("massive_activations")
    assert found.value > 1000.0
    assert found.table().select(["unit", "position"]).to_pylist() == [{"unit": 17, "position": 2}]


def test_positions_are_tokens_patches_or_what_is_usual():
    reading = MassiveActivations().reading()
    rows = list(torch.randn(4, 3))
    vectors = sonde.read(torch.nn.Sequential(torch.nn.Linear(3, 4)), rows, **reading)
    assert [str(s.reducer) for s in vectors.schema] == ["mean"]
    images = sonde.read("sonde:digits", "sonde:digits/test", limit=4, **reading)
    assert {str(s.reducer) for s in images.schema} == {"patches"}
    texts = sonde.read("sonde:stdlib", ["x = 1\n", "y = 2\n"], **reading)
    assert {str(s.reducer) for s in texts.schema} == {"tokens+special"}


def test_the_wish_for_positions_yields_to_other_methods():
    assert asked([MassiveActivations()]) == {"reducer": "positions"}
    assert asked([MassiveActivations(), MSP()]) == {"reducer": "positions"}
    assert asked([MassiveActivations(), Spectrum()]) == {}
    assert asked([MassiveActivations(), PaDiM()]) == {"reducer": "patches"}
