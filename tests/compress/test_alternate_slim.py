"""A transformer slimmed in two steps: scores by finite differences, planted idle parts, shapes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

import sonde
from models import gpt2, mlp, small_vit
from sonde import Model
from sonde.compress import AlternateSlim, fidelity
from sonde.compress.alternate_slim import answer_taylor, disturbed_taylor, weight_sizes
from sonde.core.errors import InputError
from sonde.data import open_inputs
from sonde.weights.tuning import Trainee, row_losses

IDS = [torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3]), torch.tensor([8, 9, 7, 9, 3, 2])]


def images(n: int = 24) -> torch.Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.truth("finite differences")
def test_scores_are_slopes_of_the_distance_from_disturbed_outputs():
    net: Any = mlp(5, 4, 3).double()
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(3)).double()
    model = Model(net, task="tensor")
    found = disturbed_taylor(model, open_inputs(model, x), 11)
    with torch.no_grad():
        f = net(x)
        drawn = torch.randn(7, 3, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
        target = f + f.std() * drawn
        for name, p in net.named_parameters():
            flat = p.data.view(-1)
            for i in range(0, len(flat), 3):
                was, ends = float(flat[i]), list[float]()
                for step in (1e-6, -1e-6):
                    flat[i] = was + step
                    ends.append(float((net(x) - target).square().sum()))
                flat[i] = was
                slope = (ends[0] - ends[1]) / 2e-6
                assert float(found[name].view(-1)[i]) == pytest.approx(
                    abs(was * slope), rel=1e-4, abs=1e-10
                )


@pytest.mark.truth("finite differences")
def test_scores_of_answers_are_slopes_of_their_cross_entropy():
    net: Any = mlp(5, 4, 3).double()
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(3)).double()
    model = Model(net)
    found = answer_taylor(model, open_inputs(model, x))
    said = net(x).argmax(1)
    weight = dict(net.named_parameters())["0.weight"].data
    was = weight[1, 2].item()
    ends = list[float]()
    for step in (1e-6, -1e-6):
        weight[1, 2] = was + step
        ends.append(float(cross_entropy(net(x), said, reduction="sum").detach()))
    weight[1, 2] = was
    slope = (ends[0] - ends[1]) / 2e-6
    assert float(found["0.weight"][1, 2]) == pytest.approx(abs(was * slope), rel=1e-4)
    assert float(weight_sizes(net)["0.weight"][1, 2]) == pytest.approx(abs(was))


def idle(net: Any) -> Any:
    """Let half of the stream's features, a head and half of the neurons of a ViT do nothing."""
    quiet = torch.arange(32) % 2 == 1
    vit = net.vit
    for x in (vit.embeddings.cls_token, vit.embeddings.position_embeddings):
        x.data[..., quiet] = 0.0
    writers = [vit.embeddings.patch_embeddings.projection]
    for block in vit.layers:
        writers += [block.attention.o_proj, block.mlp.fc2]
        block.attention.o_proj.weight.data[:, :16] = 0.0
        block.mlp.fc2.weight.data[:, ::2] = 0.0
    for layer in writers:
        layer.weight.data[quiet], layer.bias.data[quiet] = 0.0, 0.0
    norms = [part for part in net.modules() if isinstance(part, nn.LayerNorm)]
    for norm in norms:
        norm.weight.data[quiet], norm.bias.data[quiet] = 0.0, 0.0
    return net


def test_parts_that_do_nothing_go_first():
    net = idle(small_vit())
    rule = AlternateSlim(epochs=0)
    plan = rule.plan(Model(net, config=net.config, task="image_classifier"),
                     {"calibration": images()})  # fmt: skip
    assert plan.figures == {"width": 16.0, "units": 2 * (1 + 12)}
    new = plan.fold(net)
    even = net.vit.embeddings.patch_embeddings.projection.weight[::2]
    assert torch.equal(new.vit.embeddings.patch_embeddings.projection.weight, even)
    for old, block in zip(net.vit.layers, new.vit.layers, strict=True):
        assert torch.equal(block.mlp.fc1.weight, old.mlp.fc1.weight[1::2, ::2])
        assert torch.equal(block.attention.q_proj.weight, old.attention.q_proj.weight[16:, ::2])
    assert new(images(3)).logits.shape == (3, 3)


class Mixed(nn.Module):
    """A block of a stream, with a convolution of two groups over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.mix = nn.Conv1d(12, 12, 3, padding=1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.mix(self.up(self.norm(x)).mT).relu().mT)


def test_a_group_of_channels_that_does_nothing_goes_first():
    torch.manual_seed(0)
    ends = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)
    net: Any = nn.Sequential(ends[0], nn.Sequential(Mixed(), Mixed()), *ends[1:]).eval()
    x = torch.randn(9, 7, 5)
    for block, idle in zip(net[1], (slice(0, 6), slice(6, 12)), strict=True):
        block.down.weight.data[:, idle] = 0.0
    plan = AlternateSlim(epochs=0).plan(net, {"calibration": x})
    assert plan.figures == {"width": 4.0, "units": 2.0}
    new = plan.fold(net)
    assert torch.equal(new[1][0].mix.weight, net[1][0].mix.weight[6:])
    assert torch.equal(new[1][1].mix.weight, net[1][1].mix.weight[:6])


@pytest.mark.slow
def test_a_slim_text_model_opens(tmp_path):
    gpt2().save_pretrained(tmp_path / "old")
    model = sonde.load(str(tmp_path / "old"), device="cpu")
    plan = AlternateSlim(epochs=1, remove=0.25).plan(model, {"calibration": IDS})
    plan.save(model, tmp_path / "new")
    opened: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    ids = IDS[1][None]
    torch.testing.assert_close(opened(ids).logits, plan.fold(model)(ids).logits)


@pytest.mark.slow
def test_training_brings_answers_back():
    model = sonde.load("sonde:digits", device="cpu")
    data = open_inputs(model, "sonde:digits/train", limit=96)
    held = open_inputs(model, "sonde:digits/test", limit=60)
    rule = AlternateSlim(remove=0.25, epochs=0, rate=3e-3)
    kl = [
        fidelity(model, one.plan(model, {"calibration": data}).fold(model), held).kl
        for one in (rule, replace(rule, epochs=4))
    ]
    print(kl)
    assert kl[1] < 0.3 * kl[0]


@pytest.mark.truth("the gap of states first, the divergence of answers last, and a straight way")
def test_training_goes_from_states_to_answers(monkeypatch):
    net, student = (mlp(5, 4, 3).double().eval() for _ in range(2))
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(3)).double()
    data, losses = open_inputs(Model(net), x, batch_size=3), list[float]()

    def asked(of: Any, inputs: Any, loss: Any, *, start: nn.Module, epochs: int, **_: Any) -> Any:
        trainee = Trainee(start, row_losses(of, start, inputs), torch.Generator())
        one = next(iter(data.batches(0, 3)))
        losses.extend(float(loss(trainee, one).detach()) for _ in range(epochs * 3))
        return start

    monkeypatch.setattr("sonde.compress.alternate_slim.tuned", asked)
    rule = AlternateSlim(epochs=2)
    rule._trained(Model(net), student, data, {("0", "out"): None, ("2", "out"): None})
    with torch.no_grad():
        states = [(net[:i](x[:3]), student[:i](x[:3])) for i in (1, 3)]
        gaps = [float((a - b).square().mean() / a.square().mean()) for a, b in states]
        p, q = (one(x[:3]).log_softmax(1) for one in (net, student))
        ends = sum(gaps) / 2, float((p.exp() * (p - q)).sum(1).mean())
    assert losses == pytest.approx(np.linspace(*ends, 6).tolist())
    assert abs(ends[0] - ends[1]) > 0.05


def test_what_has_no_stream_is_refused():
    net, x = mlp(), torch.randn(9, 8)
    assert AlternateSlim(remove=0.0).plan(net, {"calibration": x}).fold(net) is net
    with pytest.raises(InputError, match=r"AlternateSlim.plan: expected a residual stream"):
        AlternateSlim().plan(net, {"calibration": x})
    with pytest.raises(InputError, match="expected rate above 0, got 0"):
        AlternateSlim(rate=0)


@pytest.mark.slow
@pytest.mark.truth("the same module as a Model with its task")
def test_a_language_model_without_its_task_is_taken_for_one():
    module: Any = gpt2()
    ids = torch.randint(3, 30, (6, 8))
    told = AlternateSlim(epochs=1).plan(sonde.load(module), {"calibration": ids})
    plan = AlternateSlim(epochs=1).plan(module, {"calibration": ids})
    assert plan.changes.keys() == told.changes.keys()
