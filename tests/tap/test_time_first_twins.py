"""States of modules that take time first, (time, row, dim): as of their twins, or refused."""

from typing import Any

import pytest
import torch
from torch import nn

import sonde
from sonde.core.errors import SiteError
from sonde.layers import Attention
from sonde.tap import Gate, Tap

DIM, N, LENGTH = 8, 4, 6
REAL = torch.arange(LENGTH) < torch.tensor((6, 3, 4, 2))[:, None]
IDS = torch.randint(3, 16, (N, LENGTH), generator=torch.Generator().manual_seed(0))
OBLONG, SQUARE = (IDS, REAL), (IDS[:, :N], REAL[:, :N])


def encoder(batch_first: bool) -> nn.Module:
    one = nn.TransformerEncoderLayer(DIM, 2, 16, 0.0, batch_first=batch_first)
    return nn.TransformerEncoder(one, 2, enable_nested_tensor=False)


KINDS: dict[str, Any] = {
    "encoder": encoder,
    "lstm": lambda batch_first: nn.LSTM(DIM, DIM, batch_first=batch_first),
    "gru": lambda batch_first: nn.GRU(DIM, DIM, batch_first=batch_first),
}


class Texts(nn.Module):
    """Ids come as (row, time), or as (time, row) if ``outside`` says so too."""

    def __init__(self, kind: str, batch_first: bool, outside: bool = False) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.table, self.inner = nn.Embedding(16, DIM), KINDS[kind](batch_first)
        self.head, self.turns = nn.Linear(DIM, DIM), not (batch_first or outside)

    def forward(self, ids, mask=None):
        x = self.table(ids)
        x = x.transpose(0, 1) if self.turns else x
        if isinstance(self.inner, nn.TransformerEncoder):
            x = self.inner(x, src_key_padding_mask=None if mask is None else mask == 0)
        else:
            x = self.inner(x)[0]
        x = self.head(x)
        return x.transpose(0, 1) if self.turns else x


class Mean(nn.Module):
    def forward(self, x):
        self.rows = x.detach()
        return x.sum()


class Third:
    def score(self, x):
        self.rows = x
        return x[:, 2]


def mixing() -> Any:
    """Return an edit that mixes the tokens of a row, always the same."""
    torch.manual_seed(1)
    layer = Attention(DIM, 2).double()
    with torch.no_grad():
        for p in layer.parameters():
            p += 0.5 * torch.randn_like(p)
    return layer.as_edit()


def tapped(net, site, *given):
    with Tap(net, [site], "mean") as tap, torch.no_grad():
        net(*given)
    return tap.rows[f"{site}:out"]


def edited(net, site, *given):
    with sonde.editing(net, mixing(), site), torch.no_grad():
        return net(*given)


def gated(net, site, *given):
    score = Third()
    with sonde.editing(net, mixing(), site, gate=Gate(score, -1e9, site)), torch.no_grad():
        net(*given)
    return score.rows


def lost(net, site, *given):
    loss = Mean()
    with sonde.training(net, {site: loss}) as terms:
        net(*given)
        terms.loss()
    return loss.rows


WAYS = {"tap": tapped, "edit": edited, "gate": gated, "loss": lost}


def nets(kind: str, outside: bool = False) -> tuple[nn.Module, nn.Module]:
    """Return a net by torch's defaults, and its twin with the rows first."""
    late = Texts(kind, batch_first=False, outside=outside).double().eval()
    early = Texts(kind, batch_first=True).double().eval()
    early.load_state_dict(late.state_dict())
    return late, early


@pytest.mark.truth("the same net with batch_first=True")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_twin_or_refused(kind, way):
    for site in ("table", "inner", "head"):
        for given in (OBLONG, OBLONG[:1], SQUARE, SQUARE[:1]):
            late, early = nets(kind)
            want = WAYS[way](early, site, *given)
            torch.testing.assert_close(WAYS[way](late, site, *given), want)


@pytest.mark.truth("the same net with batch_first=True")
@pytest.mark.parametrize("way", ["tap", "edit", "loss"])
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_may_be_time_first_too(kind, way):
    for site in ("table", "inner", "head"):
        for ids in (IDS, IDS[:, :N]):
            late, early = nets(kind, outside=True)
            found, want = WAYS[way](late, site, ids.T), WAYS[way](early, site, ids)
            torch.testing.assert_close(found.transpose(0, 1) if way == "edit" else found, want)
        with pytest.raises(SiteError, match="examples that the gate decided about"):
            gated(late, site, IDS.T)  # a gate counts the examples of the ids


@pytest.mark.truth("the last states, (layer, row, dim), written out")
@pytest.mark.parametrize("batch_first", [True, False])
def test_last_states_of_a_recurrent_module_have_their_rows_second(batch_first):
    net = nn.GRU(DIM, 5, num_layers=2, batch_first=batch_first)
    x = torch.randn(3, 4, DIM)
    with Tap(net, [":out.1"], "last") as tap, torch.no_grad():
        _, h = net(x)
    assert torch.equal(tap.rows[":out.1"], h[-1])


@pytest.mark.truth("the mean over the places of each row")
def test_maps_of_convolutions_beside_a_recurrent_part_have_their_rows_first():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv1d(2, DIM, 3, padding=1), nn.Tanh()
            self.inner = nn.LSTM(DIM, DIM)

        def forward(self, x):
            return self.inner(self.act(self.conv(x)).permute(2, 0, 1))[0]

    net, x = Both(), torch.randn(3, 2, DIM)
    with Tap(net, ["conv"], "mean") as tap, torch.no_grad():
        net(x)
        want = net.conv(x).mean(2)
    torch.testing.assert_close(tap.rows["conv:out"], want)
