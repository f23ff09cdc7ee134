"""What cannot be read is refused, with what to do instead, and the model stays as it was."""

import copy
import warnings

import pytest
import torch
from torch import nn

from cache_name import CACHE
from models import llama, mlp
from narrow import expect
from sonde.core.edit import Scale
from sonde.core.errors import ShapeError, SiteError
from sonde.core.inputs import Model
from sonde.tap import Tap, editing, live_stream
from tap_inputs import Arrays, texts

X = torch.ones(4, 8)


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return expect(nn.Module, torch.jit.trace(mlp(), X))


def exported() -> nn.Module:
    return torch.export.export(mlp(), (X,)).module()


def replicated() -> nn.Module:
    return nn.DataParallel(mlp())


class FullyShardedDataParallel(nn.Module):
    """Of the name that torch's sharded wrapper has; sharding itself needs several processes."""

    def __init__(self) -> None:
        super().__init__()
        self.module = mlp()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (scripted, r"scripted or traced.*Pass the Python module"),
        (exported, r"exported model.*Pass the Python module"),
        (replicated, r"DataParallel.*model\.module"),
        (FullyShardedDataParallel, r"flattens its weights.*before it is sharded"),
    ],
)
def test_models_that_hooks_cannot_read(build, message):
    model = build()
    with pytest.raises(SiteError, match=message):
        _ = live_stream(Model(model), Arrays(X)).schema
    with pytest.raises(SiteError, match=message):
        Tap(model, "0")
    with pytest.raises(SiteError, match=message), editing(model, Scale(2.0), "0"):
        pass


def test_a_traced_graph_of_modules_is_read():
    graph = torch.fx.symbolic_trace(mlp())
    assert next(s.key for s in live_stream(Model(graph), Arrays(X)).schema) == "0:out"


def test_stopping_early_with_a_cache_is_refused():
    from transformers import DynamicCache

    net = llama()
    ids = torch.tensor([[1, 5, 6]])
    with Tap(net, "layers.0", stop=True) as tap:
        with pytest.raises(SiteError, match="use_cache=False and no cache"):
            tap.run(ids, **{CACHE: DynamicCache()})
        assert tap.run(ids, use_cache=False) is None
    assert tap.rows["model.layers.0:out"].shape == (1, 3, 32)


def test_a_site_that_runs_for_some_inputs_only():
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.usual, self.rare = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            x = self.usual(x)
            return self.rare(x) if float(x.detach().abs().max()) < 1e6 else x

    x = torch.cat((X, X * 1e9))
    stream = live_stream(Model(Sometimes()), Arrays(x, batch_size=4), ["rare"])
    with pytest.raises(SiteError, match=r"'rare:out' did not run in this forward.*item4"):
        list(stream.batches(0, 8))


def test_left_padding_that_cannot_be_moved():
    from sonde.core.errors import InputError

    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(61, 4)

        def forward(self, input_ids, attention_mask, bias):
            return self.embed(input_ids)

    inputs = texts([4, 2], side="left", batch_size=2)
    batch = next(inputs.batches(0, 2))
    more = dict(batch.kwargs, bias=torch.zeros(1, 4, 4))
    from dataclasses import replace

    from sonde.tap.rows.padding import right_padded

    with pytest.raises(InputError, match="Pad on the right for reading"):
        right_padded(replace(batch, kwargs=more))


def test_a_copy_of_a_tapped_model_is_not_tapped():
    net = mlp()
    with Tap(net, "0") as tap:
        net(X)
        twin = copy.deepcopy(net)
        rows = tap.rows["0:out"]
    twin(X * 5)
    assert torch.equal(tap.rows["0:out"], rows)


def test_a_single_number_has_no_rows_to_reduce():
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean()

    net = nn.Sequential(nn.Linear(3, 3), Mean())
    with Tap(net, ["1"], "mean"), pytest.raises(SiteError, match="returned a single number"):
        net(torch.ones(2, 3))
    with Tap(net, ["1"]) as tap:
        net(torch.ones(2, 3))
    assert tap.rows["1:out"].shape == ()


class Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x[:, None]).squeeze())


def test_a_single_example_that_loses_its_axis_is_told():
    stream = live_stream(Model(Squeezed().eval()), Arrays(torch.ones(5, 8), batch_size=4), "b:in")
    with pytest.raises(ShapeError, match=r"\(5,\) from a batch of one example: .*squeeze"):
        list(stream.batches(0, 5))
