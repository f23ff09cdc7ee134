"""Small outputs are reduced together after the forward: same rows as one by one."""

import pytest
import torch
from torch import nn

from models import gpt2, llama
from sonde.core.errors import SiteError
from sonde.core.inputs import Model
from sonde.tap import Tap, live_stream
from sonde.tap.rows import waiting
from sonde.tap.streams import taken
from tap_inputs import Texts

ITEMS = [[1, 5, 6, 7, 8, 9], [1, 10, 11], [1, 12, 13, 14]]
PLAIN = [[1, 5, 6, 7], [1, 10, 11, 12]]


def rows_of(module: nn.Module, items: list[list[int]], reducer: str):
    model = Model(module, config=module.__dict__["config"], task="causal")
    (batch,) = live_stream(model, Texts(items), "auto", reducer).batches(0, len(items))
    return batch


@pytest.mark.parametrize("items", [ITEMS, PLAIN])
@pytest.mark.parametrize("reducer", ["mean", "last", "cls", "tokens"])
@pytest.mark.parametrize("build", [gpt2, llama])
@pytest.mark.truth("the same reductions in the hooks, site by site")
def test_stacked_sites_give_the_rows_of_single_ones(build, reducer, items, monkeypatch):
    module = build()
    together = rows_of(module, items, reducer)
    monkeypatch.setattr(waiting, "SMALL_BYTES", -1)
    monkeypatch.setattr(taken, "SMALL_BYTES", -1)
    alone = rows_of(module, items, reducer)
    assert list(together.rows) == list(alone.rows)
    for key, x in alone.rows.items():
        torch.testing.assert_close(together.rows[key], x, rtol=0, atol=1e-7 * (reducer == "mean"))
        assert torch.equal(together.example[key], alone.example[key])
        assert torch.equal(together.position[key], alone.position[key])


class Steps(nn.Module):
    """A layer that runs three times, at the second time over fewer tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        first = self.layer(x)
        second = self.layer(first[:, :2])
        return self.layer(second.repeat(1, 3, 1)[:, : x.shape[1]])


@pytest.mark.truth("the forward written out")
def test_the_last_call_wins_whatever_its_shape():
    net, x = Steps(), torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    with Tap(net, ["layer@last", "layer@0"], "mean") as tap:
        want = net(x)
    torch.testing.assert_close(tap.rows["layer@last:out"], want.mean(1))
    torch.testing.assert_close(tap.rows["layer@0:out"], net.layer(x).mean(1))


def test_an_error_in_the_common_reduction_names_the_site():
    module = llama()
    module.model.layers[-1].register_forward_hook(lambda m, a, out: out[:, :-1])
    model = Model(module, config=module.config, task="causal")
    stream = live_stream(model, Texts(ITEMS), ["layers.-1"], "mean")
    with pytest.raises(SiteError) as caught:
        list(stream.batches(0, 3))
    assert "layers." in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


class Auto(nn.Module):
    """Works in bfloat16 by autocast; what it adds to stays in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.layer = nn.Identity(), nn.Linear(4, 4)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.layer(self.block(x))


@pytest.mark.truth("the mean in float64")
def test_means_are_taken_in_the_type_of_the_output_under_autocast():
    x = 10 + torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    with Tap(Auto().eval(), ["block"], "mean") as tap:
        tap.run(x)
        rows = tap.rows["block:out"]
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.double(), x.double().mean(1), rtol=1e-6, atol=0)


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Embedding(20, 3)

    def forward(self, input_ids, attention_mask):
        return self.block(input_ids)


@pytest.mark.truth("the same mask for each text")
@pytest.mark.parametrize("reducer", ["mean", "last", "cls", "tokens"])
def test_one_mask_for_all_texts(reducer):
    ids, mask = torch.randint(1, 20, (3, 6)), torch.tensor([[0, 0, 1, 1, 1, 1]])
    found = []
    with Tap(Embedded().eval(), ["block"], reducer) as tap:
        for one in (mask, mask.expand(3, -1)):
            tap.run(input_ids=ids, attention_mask=one)
            found.append(tap.rows["block:out"])
    assert torch.equal(*found)
    assert len(found[0]) == (12 if reducer == "tokens" else 3)
