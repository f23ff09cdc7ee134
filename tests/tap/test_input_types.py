"""Inputs keep their type where a model takes it, and are cast one by one where it does not."""

import pytest
import torch
from torch import Tensor, nn

from models import mlp
from sonde.core.inputs import Model
from sonde.run.reading.read import read
from sonde.tap import live_stream
from tap_inputs import Arrays

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
TIMES = torch.linspace(900.0, 999.0, 6)[:, None]


class Mixed(nn.Module):
    """A layer in bfloat16, and one in float32 that reads the input too."""

    def __init__(self, casts: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.casts = casts
        self.narrow, self.wide = nn.Linear(8, 8).bfloat16(), nn.Linear(8, 4)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        y = self.narrow(x.bfloat16() if self.casts else x)
        return self.wide(y.float() + (x if time is None else time))


def by_hand(module: nn.Module, x: Tensor, **more: Tensor) -> Tensor:
    """Call a module on the batches that ``Arrays`` makes: kernels round by the number of rows."""
    with torch.no_grad():
        parts = [{k: v[at : at + 4] for k, v in more.items()} for at in range(0, len(x), 4)]
        return torch.cat([module(part, **m) for part, m in zip(x.split(4), parts, strict=True)])


def outputs(module: nn.Module, inputs: Arrays, site: str) -> Tensor:
    stream = live_stream(Model(module), inputs, site)
    return torch.cat([batch.rows[f"{site}:out"] for batch in stream])


@pytest.mark.truth("the model called by hand")
@pytest.mark.parametrize("casts", [True, False])
@pytest.mark.parametrize("more", [{}, {"time": TIMES}], ids=["x", "x and time"])
def test_rows_are_those_of_the_model_called_by_hand(casts, more):
    module = Mixed(casts)
    found = outputs(module, Arrays(X, more=more), "wide")
    assert torch.equal(found, by_hand(module, X if casts else X.bfloat16(), **more))


class Later(nn.Module):
    """Takes a large offset off in double precision, then works in single precision."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((x - 1e6).float())


@pytest.mark.truth("the model called by hand")
def test_items_keep_their_type_from_the_data_on():
    module, x = Later().eval(), X.double() + 1e6
    for items in ([*x], [{"x": row} for row in x], x.numpy()):
        found = torch.cat([batch.rows["fc:out"] for batch in read(module, items, "fc")])
        with torch.no_grad():
            assert torch.equal(found, module(x))


@pytest.mark.truth("the model called by hand")
def test_double_precision_goes_to_a_net_of_single_precision():
    assert torch.equal(outputs(mlp(), Arrays(X.double()), "4"), by_hand(mlp(), X))
