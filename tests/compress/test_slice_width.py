"""The residual stream cut: against streams that lie in fewer directions, and rows by hand."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import sonde
from models import bert, gpt2, llama, vit
from sonde.compress import SliceWidth, fidelity
from sonde.compress._stream import Stream
from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.data import open_inputs
from sonde.weights import Exchange
from sonde.weights.residual import residual_readers, residual_writers
from sonde.weights.rewrite import RewritePlan

IDS = [torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3]), torch.tensor([8, 9, 7, 9, 3, 2])]


def uneven(net: Any, seed: int = 5) -> Any:
    """Return a net in float64 whose weights are large, and gains and biases of norms are uneven."""
    draw = torch.Generator().manual_seed(seed)
    net = net.double()
    for name, x in net.named_parameters():
        more = torch.randn(x.shape, generator=draw, dtype=torch.float64)
        x.data += more * (0.4 if x.ndim == 1 else 0.15) if "token" not in name else more
    return net


def thin(net: Any, n: int, inputs: Any = None) -> Any:
    """Let everything that writes into the stream write into ``n`` random directions alone."""
    draw = torch.Generator().manual_seed(7)
    into = torch.linalg.qr(torch.randn(32, n, generator=draw, dtype=torch.float64)).Q
    onto = into @ into.T
    if any(isinstance(part, nn.LayerNorm) for part in net.modules()):
        into = torch.linalg.qr(into - into.mean(0)).Q
        onto = into @ into.T + torch.full((32, 32), 1 / 32, dtype=torch.float64)
    for term in residual_writers(net, inputs):
        if isinstance(term, str):
            net.get_parameter(term).data @= onto
            continue
        layer: Any = term.module
        axis = -1 if term.kind in ("rows", "transposed") else 0
        layer.weight.data = (layer.weight.data.movedim(axis, -1) @ onto).movedim(-1, axis)
        if getattr(layer, "bias", None) is not None:
            layer.bias.data = onto @ layer.bias.data
    return net


@pytest.mark.essential
@pytest.mark.parametrize("build", [gpt2, llama, vit])
@pytest.mark.truth("a model whose stream lies in twelve planted directions")
def test_directions_without_states_go_without_a_change(build):
    net = thin(uneven(build()), 12)
    data: Any = torch.randn(9, 3, 24, 24).double() if build is vit else IDS
    task = "image_classifier" if build is vit else "causal"
    model = Model(net, config=net.config, task=task)
    # centred norms need a direction more
    width = 12 if build is llama else 13
    rule = SliceWidth(remove=1 - width / 32, round_to=1, half=False)
    plan = rule.plan(model, {"calibration": data})
    assert plan.figures["width"] == width
    assert plan.figures["lost"] == pytest.approx(0.0, abs=1e-12)
    new, x = plan.fold(model), torch.randn(2, 3, 24, 24).double() if build is vit else IDS[1][None]
    near = 1e-5 if build is llama else 1e-9  # its norms compute in float32
    torch.testing.assert_close(new(x).logits, net(x).logits, rtol=near, atol=near)
    if build is gpt2:  # the same block twice
        net.transformer.h[1] = net.transformer.h[0]
        twice = rule.plan(model, {"calibration": data}).fold(model)
        torch.testing.assert_close(twice(x).logits, net(x).logits, rtol=near, atol=near)
    cut = SliceWidth(remove=1 - (width - 1) / 32, round_to=1, half=False)
    less = cut.plan(model, {"calibration": data}).fold(model)
    assert (less(x).logits - net(x).logits).abs().max() > 1e-3


@pytest.mark.truth("numpy's eigenvalues of rows that hooks took")
def test_what_is_lost_is_the_power_of_the_rows_that_norms_give():
    net, rows = uneven(gpt2()), list[torch.Tensor]()
    for name in residual_readers(net):
        part: Any = net.get_submodule(name)

        def keep(own: Any, given: Any, out: torch.Tensor) -> None:
            rows.append(((out - own.bias) / own.weight).detach().reshape(-1, 32))

        part.register_forward_hook(keep)
    for ids in IDS:
        net(ids[None])
    z = torch.cat(rows).numpy()
    for part in net.modules():
        part._forward_hooks.clear()
    model = Model(net, config=net.config, task="causal")
    plan = SliceWidth(remove=0.4, round_to=3).plan(model, {"calibration": IDS})
    assert plan.figures["width"] == 21
    power = np.linalg.eigvalsh(z.T @ z)[::-1]
    assert plan.figures["lost"] == pytest.approx(power[20:].sum() / power.sum(), rel=1e-4)


def test_a_narrower_llama_opens_without_any_form(tmp_path):
    llama().save_pretrained(tmp_path / "old")
    model = sonde.load(str(tmp_path / "old"), device="cpu")
    plan = SliceWidth().plan(model, {"calibration": IDS})
    plan.save(model, tmp_path / "new")
    told = json.loads((tmp_path / "new" / "config.json").read_text())
    assert (told["hidden_size"], told["head_dim"]) == (24, 8)
    assert "quantization_config" not in told
    opened: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    ids = IDS[1][None]
    torch.testing.assert_close(opened(ids).logits, plan.fold(model)(ids).logits)


def test_tied_embeddings_become_two_and_the_folder_opens(tmp_path):
    gpt2().save_pretrained(tmp_path / "old")
    model = sonde.load(str(tmp_path / "old"), device="cpu")
    plan = SliceWidth().plan(model, {"calibration": IDS})
    assert plan.ties
    plan.save(model, tmp_path / "new")
    opened: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    ids = IDS[1][None]
    torch.testing.assert_close(opened(ids).logits, plan.fold(model)(ids).logits)
    longer = [one.generate(ids, max_new_tokens=4, do_sample=False, use_cache=cache)
              for one in (opened, plan.fold(model)) for cache in (True, False)]  # fmt: skip
    assert all(torch.equal(longer[0], one) for one in longer[1:])


@pytest.mark.slow
def test_principal_directions_beat_features_on_a_trained_net():
    model = sonde.load("sonde:digits", device="cpu")
    data = open_inputs(model, "sonde:digits/train", limit=100)
    held = open_inputs(model, "sonde:digits/test", limit=100)
    new = SliceWidth(half=False).plan(model, {"calibration": data}).fold(model)
    stream = Stream.of("SliceWidth", model, data)
    named = model.module.state_dict()
    power = sum(named[name].movedim(axis, -1).flatten(0, -2).square().sum(0)
                for name, axis in stream.writers.items() if named[name].ndim > 1)  # fmt: skip
    assert isinstance(power, torch.Tensor)
    onto = torch.zeros(64, 64, dtype=torch.float64)
    onto.diagonal()[power.argsort()[16:]] = 1.0
    plain = stream.mapped(model.module, onto @ (torch.eye(64).double() - 1 / 64))
    cut = RewritePlan.of(model, {n: Exchange(x.to(named[n])) for n, x in
                                 plain.items()}).fold(model)  # fmt: skip
    kl = [fidelity(model, one, held).kl for one in (new, cut)]
    print(kl)
    assert kl[0] < 0.3 * kl[1]


def test_what_cannot_be_rotated_is_refused_with_the_reason():
    net = bert()
    model = Model(net, config=net.config, task="encoder")
    with pytest.raises(InputError, match=r"encoder.layer.2.output.LayerNorm .* stands there"):
        SliceWidth().plan(model, {"calibration": IDS})
    assert SliceWidth(remove=0.0).plan(model, {"calibration": IDS}).fold(model) is net
    with pytest.raises(InputError, match="round_to of at least 1, got 0"):
        SliceWidth(round_to=0)

    class Reads(nn.Module):
        """A stream that something reads beside its norm."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
            self.blocks = nn.ModuleList([Block() for _ in range(2)])
            self.norm = nn.LayerNorm(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            for block in self.blocks:
                x = block(x)
            return self.last(self.norm(x)) * x.abs().mean()

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.map = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.map(self.norm(x))

    torch.manual_seed(0)
    with pytest.raises(InputError, match="Reads gives other answers if its residual stream"):
        SliceWidth().plan(Reads(), {"calibration": torch.randn(9, 6)})
    with pytest.raises(InputError, match="expected a residual stream"):
        SliceWidth().plan(nn.Linear(6, 3), {"calibration": torch.randn(9, 6)})
