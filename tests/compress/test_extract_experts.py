"""Experts cut out of dense blocks: all units, planted units, mixed batches."""

import pytest
import torch
from torch import nn

import sonde
from compress.two_domains_case import DOMAINS, TwoDomains, texts, unit_of
from sonde import Model
from sonde.compress import ExtractExperts, unit_use
from sonde.core import InputError, ShapeError, StateError
from sonde.data import open_inputs


@pytest.mark.truth("the dense model, bit for bit")
@pytest.mark.parametrize("word", ["sonde:stdlib", "sonde:digits"])
def test_an_expert_of_all_units_is_the_dense_model(word):
    model = sonde.load(word, device="cpu")
    draw = torch.Generator().manual_seed(0)
    stdlib = word == "sonde:stdlib"
    x = torch.randint(256, (3, 9), generator=draw) if stdlib else torch.rand(3, 1, 8, 8)
    data = [{"input_ids": ids} for ids in x] if stdlib else x
    sliced = ExtractExperts(keep=1.0).extract(model, {"all": data})
    with torch.no_grad(), sliced.routed(torch.zeros(3, dtype=torch.long)) as routed:
        assert torch.equal(routed(x).logits, model.module(x).logits)


@pytest.mark.truth("units planted for each alphabet")
def test_each_domain_gets_the_units_that_know_it():
    net = TwoDomains()
    data = {name: texts(name) for name in DOMAINS}
    sliced = ExtractExperts(keep=7 / 13, top=1 / 13).extract(net, data)
    low, high = (set(units.tolist()) for units in sliced.units["mlp"])
    assert high == {unit_of(t) for t in DOMAINS["high"]}
    assert low >= {unit_of(t) for t in DOMAINS["low"]}
    ids = torch.tensor([[0, 1, 2], [7, 8, 9]])
    with torch.no_grad(), sliced.routed(torch.tensor([0, 1])) as routed:
        torch.testing.assert_close(routed(ids).logits, net(ids).logits)
    by_length = ExtractExperts(keep=7 / 13, by="length").extract(net, data)
    assert by_length.units["mlp"][0].equal(by_length.units["mlp"][1])
    assert set(by_length.units["mlp"][0].tolist()) == {unit_of(t) for t in range(5, 12)}


@pytest.mark.truth("each token alone with its expert")
def test_tokens_of_one_batch_run_through_different_experts():
    net = TwoDomains()
    sliced = ExtractExperts(keep=0.4, top=0.1).extract(net, {n: texts(n) for n in DOMAINS})
    ids = torch.tensor([[0, 7, 3, 9], [8, 1, 1, 11]])
    experts = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1]])
    with torch.no_grad(), sliced.routed(experts) as routed:
        found = routed(ids).logits
        assert routed(ids[:, -1:]).logits.equal(found[:, -1:])  # as in generation with a cache
    gaps = set[float]()
    for row in range(2):
        for t in range(4):
            for e in range(2):
                with torch.no_grad(), sliced.routed(torch.tensor([e])) as routed:
                    alone = routed(ids[row : row + 1, t : t + 1]).logits[0, 0]
                if e == int(experts[row, t]):
                    torch.testing.assert_close(found[row, t], alone)
                else:
                    gaps.add(float((found[row, t] - alone).abs().max()))
    assert max(gaps) > 1.0


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.down(self.up(x).softmax(-1))


def test_what_cannot_be_cut_or_routed_is_refused():
    net, data = TwoDomains(), {"low": texts("low")}
    other = TwoDomains()
    other.mlp.up.bias.data += 1.0
    use = unit_use(net, open_inputs(Model(net), texts("low")))
    with pytest.raises(StateError, match="measured on another model"):
        ExtractExperts().extract(other, {"low": use})
    with pytest.raises(
        InputError, match=r"0 \(Mixed\), which differs from the sum of its two halves"
    ):
        ExtractExperts().extract(nn.Sequential(Mixed()), {"a": torch.randn(5, 4)})
    with pytest.raises(InputError, match="at least one domain, got none"):
        ExtractExperts().extract(net, {})
    sliced = ExtractExperts().extract(net, data)
    with pytest.raises(StateError, match="no expert was chosen"):
        sliced.model(torch.tensor([[1]]))
    with pytest.raises(InputError, match=r"experts from 0 to 0, got \[0, 1\]"):
        sliced.routed(torch.tensor([0, 1])).__enter__()
    with (
        sliced.routed(torch.tensor([0])) as routed,
        pytest.raises(ShapeError, match=r"experts of 2 rows, .* got \(1,\)"),
    ):
        routed(torch.tensor([[1], [2]]))
