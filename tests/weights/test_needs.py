"""What a rewrite reads: examples in any form, results of instruments, and what is refused."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sonde
from edit.fact_model import FACTS, tiny
from sonde import Model
from sonde.core.errors import InputError
from sonde.data import open_inputs
from sonde.edit import RandomLabel, RankOneEdit, SecondMoment, SelectiveDampening
from sonde.stats import Moments

LAYER = "model.layers.1.mlp.down_proj"
SITE = f"{LAYER}:in"


def sides() -> tuple[Model, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    draw = torch.Generator().manual_seed(0)
    x, label = torch.randn(24, 5, generator=draw), torch.arange(24) % 3
    torch.manual_seed(0)
    model = Model(nn.Sequential(nn.Linear(5, 3)))
    return model, {"forget": (x[:8], label[:8]), "retain": (x[8:], label[8:])}


def test_tensors_loaders_and_inputs_give_the_same_weights():
    model, rows = sides()
    loaders = {name: DataLoader(TensorDataset(*pair), batch_size=4) for name, pair in rows.items()}
    opened = {name: open_inputs(model, pair) for name, pair in rows.items()}
    rule = RandomLabel(epochs=2)
    found = [rule.plan(model, given).fold(model)[0].weight for given in (rows, loaders, opened)]
    module: Any = model.module
    assert not torch.equal(found[0], module[0].weight)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_fit_a_result_a_state_and_rows_give_the_same_weights():
    model, draw = tiny(), torch.Generator().manual_seed(1)
    rows = torch.randn(200, 24, generator=draw)
    edit = RankOneEdit(FACTS[0], LAYER, shift=torch.ones(16))
    fitted = sonde.fit(edit, sonde.Stream.of({SITE: rows}), progress=False)
    result, state = SecondMoment().fit(rows), Moments().observe(rows)
    forms = [fitted, result, {SITE: result}, {"moment": {SITE: state}}, {"moment": rows}]
    first, *others = (edit.plan(model, given).changes[f"{LAYER}.weight"] for given in forms)
    for other in others:
        for name, factor in first.factors().items():
            torch.testing.assert_close(other.factors()[name], factor, rtol=1e-9, atol=1e-12)


def test_what_is_missing_or_wrong_is_refused():
    model, rows = sides()
    with pytest.raises(InputError, match="'forget' and 'retain' as fitted, got no 'forget'"):
        RandomLabel().plan(model)
    with pytest.raises(InputError, match="'forget' and 'retain' as fitted, got no 'retain'"):
        RandomLabel().plan(model, {"forget": rows["forget"]})
    state = Moments().observe(rows["forget"][0])
    with pytest.raises(InputError, match="expected data or SquaredGradients as 'forget', got Mom"):
        SelectiveDampening().plan(model, {"forget": state, "retain": state})
    with pytest.raises(InputError, match=r"SecondMoment fitted at .*down_proj:in, got str"):
        RankOneEdit(FACTS[0], LAYER, shift=torch.ones(16)).plan(tiny(), "text")
    with pytest.raises(InputError, match="a rewrite that reads forget, retain"):
        sonde.fit(RandomLabel(), sonde.Stream.of({"x": rows["forget"][0]}))
