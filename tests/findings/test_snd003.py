import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from findings import _evidence as arrays
from findings._nets import assert_clear, assert_raised, evidence_of, tensors, tokens
from narrow import expect
from sonde.findings.codes.snd003 import SND003
from sonde.findings.evidence.modules.fresh_weights import fresh_layers, neighbours, spectrum_edge
from sonde.findings.rule import Check


def ended(net: nn.Module) -> Check:
    stream = tensors(net, arrays.digits()[0][:200])
    return SND003().check(evidence_of(stream, variants=True))


def with_anew(layer: int, seed: int, std: float | None = None) -> nn.Sequential:
    net = deepcopy(arrays.net(trained=True)).requires_grad_(False)
    torch.manual_seed(seed)
    drawn = expect(nn.Linear, net[layer])
    drawn.reset_parameters()
    if std is not None:
        nn.init.normal_(drawn.weight, std=std)
        nn.init.zeros_(drawn.bias)
    return net


@pytest.mark.parametrize(("layer", "std"), [(2, None), (4, 0.02), (6, None), (6, 0.02)])
def test_a_layer_that_was_drawn_anew_is_named(layer: int, std: float | None) -> None:
    finding = assert_raised(ended(with_anew(layer, 0, std)), "warning")
    assert finding.sites == (str(layer),)


@pytest.mark.slow
def test_trained_layers_are_clear_and_a_whole_random_model_is_a_note() -> None:
    assert_clear(ended(arrays.net(trained=True)))
    finding = assert_raised(ended(arrays.net(trained=False)), "note")
    assert "The whole model looks untrained" in finding.sentence


@pytest.mark.truth("simulation: random weights between fixed layers, and weights turned to them")
def test_random_weights_know_nothing_of_the_layers_beside_them() -> None:
    draw = torch.Generator().manual_seed(0)
    after = torch.randn(30, 24, generator=draw) * 0.9 ** torch.arange(24)
    before = torch.randn(40, 20, generator=draw) * 0.9 ** torch.arange(20)
    weights = [torch.randn(24, 40, generator=draw) for _ in range(300)]
    found = [list(neighbours(weight, [before], [after])) for weight in weights]
    below = (torch.tensor(found) < 0.1).double().mean(0).tolist()
    assert below == pytest.approx([0.1, 0.1], abs=0.06)
    turned = torch.linalg.svd(after).Vh[:4].T @ torch.randn(4, 40, generator=draw)
    assert next(neighbours(weights[0] + turned, [], [after])) < 1e-5


class Reader(nn.Module):
    """An embedding, the mean over tokens and a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(61, 24), nn.Linear(24, 61)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(input_ids).mean(1))


def test_an_embedding_that_was_drawn_anew_is_named() -> None:
    torch.manual_seed(0)
    net = Reader().requires_grad_(False).eval()
    for learned, is_named in ((0.0, True), (0.1, False)):
        net.table.weight.normal_(0, 0.05)
        net.table.weight += learned * torch.randn(61, 1) * torch.randn(24)
        check = SND003().check(evidence_of(tokens(net, [6] * 64), variants=True))
        named = () if check.finding is None else check.finding.sites
        assert ("table" in named) == is_named


@pytest.mark.truth("singular values and Tracy-Widom quantiles by simulation of random matrices")
def test_the_edge_of_random_weights_is_where_theory_has_it() -> None:
    found = []
    for seed in range(200):
        weight = 0.3 * torch.randn(40, 90, generator=torch.Generator().manual_seed(seed))
        edge, p = spectrum_edge(weight, 0.3)
        truth = float(torch.linalg.svdvals(weight)[0]) / (0.3 * (math.sqrt(40) + math.sqrt(90)))
        assert edge == pytest.approx(truth, rel=1e-4)
        found.append(p)
    below = [(torch.tensor(found) < level).double().mean().item() for level in (0.1, 0.5)]
    assert below == pytest.approx([0.1, 0.5], abs=0.1)


@pytest.mark.slow
def test_a_norm_at_its_initial_values_among_moved_ones_is_named() -> None:
    torch.manual_seed(0)
    norms = [nn.LayerNorm(12) for _ in range(3)]
    net = nn.Sequential(
        nn.Linear(12, 12), norms[0], nn.GELU(), norms[1], nn.Linear(12, 12), norms[2]
    )
    for module in norms[:2]:
        module.weight.data += 0.1 * torch.randn(12)
    stream = tensors(net.requires_grad_(False).eval(), torch.randn(40, 12))
    check = SND003().check(evidence_of(stream, variants=True))
    assert check.finding is not None
    assert check.finding.sites == ("5",)
    norms[2].weight += 0.1
    assert SND003().check(evidence_of(stream, variants=True)).state == "not_applicable"


class Recurrent(nn.Module):
    """Digits line by line through two recurrent layers, or one attention layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "attention":
            self.body: nn.Module = nn.MultiheadAttention(64, 4, batch_first=True)
        else:
            made = {"lstm": nn.LSTM, "gru": nn.GRU}[kind]
            self.body = made(64, 48, 2, batch_first=True)
        width = 64 if kind == "attention" else 48
        self.head = nn.Sequential(nn.Linear(width, 48), nn.ReLU(), nn.Linear(48, 24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = x[:, None, :].repeat(1, 3, 1)
        if self.kind == "attention":
            return self.head(self.body(steps, steps, steps)[0].mean(1))
        return self.head(self.body(steps)[0][:, -1])


@pytest.mark.slow
@pytest.mark.truth("planted: one matrix of a recurrent or attention layer drawn anew")
@pytest.mark.parametrize(
    ("kind", "name"),
    [("lstm", "weight_hh_l1"), ("gru", "weight_ih_l0"), ("attention", "in_proj_weight")],
)
def test_matrices_inside_recurrent_and_attention_layers_are_judged(kind: str, name: str) -> None:
    torch.manual_seed(0)
    net, (x, label) = Recurrent(kind), arrays.digits()
    steps = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(120):
        steps.zero_grad()
        nn.functional.cross_entropy(net(x[:600]), label[:600]).backward()
        steps.step()
    net = net.eval().requires_grad_(False)
    found = fresh_layers(tensors(net, x[:64]), 0)
    assert (found.inner, found.n_inner) == ((), 1 if kind == "attention" else 4)
    weight = net.body.get_parameter(name)
    bound = 48**-0.5 if kind != "attention" else (6 / 256) ** 0.5
    weight.data.uniform_(-bound, bound)
    found = fresh_layers(tensors(net, x[:64]), 0)
    assert [one.path for one in found.inner] == [f"body.{name}"]
    finding = assert_raised(ended(net), "warning")
    assert finding.sites == ("body",)


def test_a_table_of_zeros_is_named() -> None:
    net = Reader().eval().requires_grad_(False)
    stream = tokens(net, [6] * 64)
    assert fresh_layers(stream, 0).zeros == ()
    net.table.weight.zero_()
    finding = assert_raised(SND003().check(evidence_of(stream, variants=True)), "warning")
    assert "zero everywhere" in finding.sentence
