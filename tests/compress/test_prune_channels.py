"""Narrower layers: what must go together, fits by another way, and models that open."""

import json
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import sonde
from edit.fact_model import tiny
from models import bert, cnn, gpt2, llama, mlp, opt, qwen2, resnet18
from sonde import Model
from sonde.compress import PruneChannels, fidelity
from sonde.compress._coupled import coupled_sets
from sonde.core.errors import InputError
from sonde.data import open_inputs


def rows(n_in: int = 8, n: int = 60, seed: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, n_in, generator=draw) @ torch.randn(n_in, n_in, generator=draw)


def tokens() -> list[torch.Tensor]:
    return [torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])]


class Grouped(nn.Module):
    """A depthwise convolution, a grouped one and a flattening between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.deep = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 12, 3, groups=6)
        self.norm, self.two = nn.BatchNorm2d(12), nn.Conv2d(12, 8, 1, groups=4)
        self.last = nn.Linear(8 * 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.deep(torch.relu(self.one(x)))))
        return self.last(torch.tanh(self.two(x)).flatten(1))


def found_in(
    module: nn.Module, data: Any, task: str = "causal"
) -> list[tuple[int, dict[str, int]]]:
    model = Model(module, config=module.__dict__.get("config"), task=task)
    sets, refused = coupled_sets(model, open_inputs(model, data))
    assert not refused
    return [(len(one), {f"{n}:{side}": len(p) for (n, side), p in one.units[0].items()})
            for one in sets]  # fmt: skip


def test_what_must_go_together_is_found_by_trying():
    torch.manual_seed(0)
    plain = found_in(mlp(), rows())
    assert plain == [(16, {"0:out": 1, "2:in": 1}), (16, {"2:out": 1, "4:in": 1})]
    residual = found_in(resnet18(width=4, channels=1), torch.randn(2, 1, 32, 32))
    streams = [one for one in residual if len(one[1]) > 4]
    assert [n for n, _ in streams] == [4, 8, 16, 32]
    assert {"conv1:out", "layer1.1.conv2:out", "layer2.0.downsample.0:in"} <= streams[0][1].keys()
    assert streams[-1][1]["fc:in"] == 1
    grouped = found_in(Grouped().eval(), torch.randn(2, 1, 8, 8))
    # six channels of the depthwise convolution, from three before it, are two whole groups of the
    # convolution behind it
    assert grouped == [
        (2, {"one:out": 3, "deep:out": 6, "deep:in": 3, "two:out": 4, "two:in": 6, "last:in": 64,
             "norm:out": 6})
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("build", "heads"), [(gpt2, 4), (llama, 4), (qwen2, 2), (opt, 4), (bert, 4)]
)
def test_heads_are_units_of_an_attention(build, heads):
    found = found_in(build(), tokens())
    assert [n for n, _ in found] == [heads, 128 if build is gpt2 else 48] * 3
    (_, parts), (_, neurons) = found[:2]
    assert sum(parts.values()) == {4: 32, 2: 48}[heads]
    assert set(neurons.values()) == {1}


@pytest.mark.truth("least squares over rows, and every pair of channels")
def test_readers_are_fitted_by_least_squares_and_the_first_pair_is_near_the_best():
    net, x = mlp(8, 6).double(), rows().double()
    with torch.no_grad():
        hidden = torch.relu(net[0](x))
        wanted = net[2](hidden)
    wide = torch.cat([hidden, torch.ones(len(x), 1).double()], 1)
    errors = {}
    for gone in combinations(range(6), 2):
        kept = [i for i in range(6) if i not in gone] + [6]
        fit = torch.linalg.lstsq(wide[:, kept], wanted, driver="gelsd").solution
        errors[gone] = float((wide[:, kept] @ fit - wanted).square().sum())
    rule = PruneChannels(remove=1 / 3, damp=1e-10, half=False, layers=("0",))
    plan = rule.plan(net, {"calibration": x})
    new = plan.fold(net)
    kept = [int((net[0].bias == b).nonzero()) for b in new[0].bias]
    gone: Any = tuple(i for i in range(6) if i not in kept)
    with torch.no_grad():
        error = float((new[2](torch.relu(new[0](x))) - wanted).square().sum())
    assert error == pytest.approx(errors[gone], rel=1e-6)
    assert plan.figures["loss"] * len(x) == pytest.approx(errors[gone], rel=1e-6)
    assert sorted(errors, key=errors.__getitem__).index(gone) < 3
    assert (new[0].out_features, new[2].in_features) == (4, 4)
    assert plan.figures["parameters"] == 2 * 9 + 2 * 6


def planted() -> Any:
    """Return a net with a channel that is constant, and one that doubles another."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3),
                        nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)).double().eval()  # fmt: skip
    first: Any = net[0]
    first.weight.data[1], first.bias.data[1] = 0.0, 0.7
    first.weight.data[3], first.bias.data[3] = 2 * first.weight.data[2], 2 * first.bias.data[2]
    return net


def test_a_constant_and_a_doubled_channel_go_without_a_change():
    net, x = planted(), torch.randn(40, 1, 8, 8).double()
    rule = PruneChannels(remove=0.4, damp=1e-9, half=False, layers=("0",))
    new = rule.plan(net, {"calibration": x}).fold(net)
    kept = [int((net[0].bias == b).nonzero()) for b in new[0].bias]
    assert len({2, 3} & {*kept}) == 1
    assert 1 not in kept
    torch.testing.assert_close(new(x), net(x), atol=1e-5, rtol=0)
    plain = PruneChannels(remove=0.4, refit=False, layers=("0",)).plan(net, {"calibration": x})
    assert (plain.fold(net)(x) - net(x)).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("score", ["reconstruction", "power", "norm"])
@pytest.mark.parametrize("kind", ["resnet", "grouped", "cnn"])
def test_a_narrower_convolutional_net_is_one_that_is_built_so(kind, score):
    torch.manual_seed(0)
    nets: dict[str, Any] = {
        "resnet": lambda: resnet18(width=4, channels=1),
        "grouped": lambda: Grouped().eval(),
        "cnn": cnn,
    }
    net: Any = nets[kind]()
    x = torch.randn(6, 1, 32 if kind == "resnet" else 8, 32 if kind == "resnet" else 8)
    plan = PruneChannels(remove=0.5, score=score, refit=False).plan(net, {"calibration": x})
    new = plan.fold(net)
    assert new(x).shape == net(x).shape
    sizes = [sum(p.numel() for p in one.state_dict().values()) for one in (net, new)]
    assert plan.figures["parameters"] == sizes[0] - sizes[1] > 0
    if kind == "resnet":
        fresh: Any = resnet18(width=2, channels=1)
        fresh.load_state_dict(new.state_dict())
        assert repr(fresh) == repr(new)
        assert torch.equal(fresh(x), new(x))


@pytest.mark.slow
def test_heads_and_neurons_leave_a_folder_that_opens(tmp_path):
    llama().save_pretrained(tmp_path / "old")
    model = sonde.load(str(tmp_path / "old"), device="cpu")
    plan = PruneChannels(remove=0.5, score="power").plan(model, {"calibration": tokens()})
    plan.save(model, tmp_path / "new")
    told = json.loads((tmp_path / "new" / "config.json").read_text())
    assert (told["num_attention_heads"], told["intermediate_size"]) == (2, 24)
    assert "quantization_config" not in told
    ids = torch.tensor([[3, 1, 4]])
    opened: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    torch.testing.assert_close(opened(ids).logits, plan.fold(model)(ids).logits)


@pytest.mark.parametrize("build", ["gpt2", "llama"])
def test_sets_of_other_sizes_are_told_one_by_one(tmp_path, build):
    model = tiny(build)
    model.module.save_pretrained(tmp_path / "old")
    given = {"calibration": ["tom likes tea", "ann likes rye"]}
    name = "transformer.h.1.attn.c_attn" if build == "gpt2" else "model.layers.1.self_attn.q_proj"
    plan = PruneChannels(remove=0.5, layers=(name,)).plan(model, given)
    plan.save(str(tmp_path / "old"), tmp_path / "new")
    told = json.loads((tmp_path / "new" / "config.json").read_text())["quantization_config"]
    assert any("numbers" in one for one in told["layers"].values()) == (build == "gpt2")
    ids = torch.tensor([[100, 101, 102]])
    opened: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    torch.testing.assert_close(opened(ids).logits, plan.fold(model)(ids).logits)
    longer = [one.generate(ids, max_new_tokens=5, do_sample=False, use_cache=cache)
              for one in (opened, plan.fold(model)) for cache in (True, False)]  # fmt: skip
    assert all(torch.equal(longer[0], one) for one in longer[1:])


@pytest.mark.slow
def test_a_fit_beats_plain_cuts_on_a_trained_net():
    model = sonde.load("sonde:digits", device="cpu")
    data = open_inputs(model, "sonde:digits/train", limit=200)
    held = open_inputs(model, "sonde:digits/test", limit=100)
    kl = {}
    for name, more in (("plain", {"score": "norm", "refit": False}), ("norm", {"score": "norm"}),
                       ("full", {})):  # fmt: skip
        given: dict[str, Any] = {"remove": 0.5, "layers": ("*.mlp.*",), **more}
        rule = PruneChannels(**given)
        kl[name] = fidelity(model, rule.plan(model, {"calibration": data}).fold(model), held).kl
    print(kl)
    assert kl["full"] < kl["norm"] < kl["plain"]
    assert kl["full"] < 0.2 * kl["plain"]


def test_what_cannot_go_is_refused_with_the_reason():
    net, x = mlp(), rows()
    assert PruneChannels(remove=0.0).plan(net, {"calibration": x}).fold(net) is net
    with pytest.raises(InputError, match="no layer with removable channels matches '7'"):
        PruneChannels(layers=("7",)).plan(net, {"calibration": x})
    with pytest.raises(InputError, match="each channel reaches the model's output, or a norm"):
        PruneChannels().plan(nn.Sequential(nn.Linear(8, 3)), {"calibration": x})
    with pytest.raises(InputError, match="round_to of at least 1, got 0"):
        PruneChannels(round_to=0)

    class Fixed(nn.Module):
        """Adds a parameter of the width of its channels, which stays."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 6), nn.Linear(6, 3)
            self.shift = nn.Parameter(torch.ones(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x) + self.shift)

    with pytest.raises(InputError, match=r"one: the model does not run without half of them"):
        PruneChannels().plan(Fixed(), {"calibration": x})
