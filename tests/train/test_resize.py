"""Models of other widths and depths: the same function, exact ways back, ties and their end."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models
from sonde.core import InputError, SiteError
from sonde.train import Resize

NETS = {
    name: getattr(models, name) for name in ("gpt2", "llama", "qwen2", "opt", "bert", "vit", "deit")
}


def answers(net: Any, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if net.main_input_name == "pixel_values":
            out = net(torch.randn(3, 3, 24, 24, generator=draw, dtype=next(net.parameters()).dtype))
        else:
            ids = torch.randint(3, 60, (2, 7), generator=draw)
            mask = torch.ones_like(ids)
            mask[1, :3] = 0
            out = net(input_ids=ids, attention_mask=mask)
            return out[0][mask.bool()]
    return out[0]


def noisy(net: nn.Module) -> Any:
    """Move every weight, norms and biases too, so that no two units are alike."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return net.double().eval()


@pytest.mark.truth("the old model's own answers, and its own weights on the way back")
@pytest.mark.parametrize("name", NETS)
def test_wider_models_answer_the_same_and_come_back_exactly(name):
    net = noisy(NETS[name]())
    wide = Resize("decoalesce", factor=3).of(net)
    assert wide.config.hidden_size == 96
    assert sum(p.numel() for p in wide.parameters()) > 5 * sum(p.numel() for p in net.parameters())
    before, after = answers(net), answers(wide)
    near = 1e-5 if name in ("llama", "qwen2") else 1e-9  # their norms compute in float32
    if before.shape == after.shape:
        torch.testing.assert_close(after, before, rtol=near, atol=near)
    else:  # of encoders each unit has three copies, head by head
        for copy in after.unflatten(-1, (4, 3, 8)).unbind(-2):
            torch.testing.assert_close(copy.flatten(-2), before, rtol=near, atol=near)
    back = Resize("coalesce", factor=3).of(wide)
    for key, x in net.state_dict().items():
        torch.testing.assert_close(back.state_dict()[key], x, rtol=1e-12, atol=1e-12, msg=key)


@pytest.mark.truth("means of neighbouring blocks; a block that adds nothing")
def test_depths():
    net = noisy(models.llama())
    deep = Resize(depth="stack").of(net)
    assert len(deep.model.layers) == 4
    assert torch.equal(answers(deep), answers(net))
    assert not torch.equal(
        deep.model.layers[3].self_attn.q_proj.weight, torch.zeros(32, 32).double()
    )
    twice = Resize(depth="repeat").of(net)
    for i in range(6):
        assert torch.equal(
            twice.model.layers[i].mlp.up_proj.weight, net.model.layers[i // 2].mlp.up_proj.weight
        )
    half = Resize("coalesce", "merge").of(twice)
    assert len(half.model.layers) == 3
    both = Resize("coalesce").of(net)
    torch.testing.assert_close(
        half.model.layers[1].mlp.up_proj.weight, both.model.layers[1].mlp.up_proj.weight
    )
    one = Resize(depth="merge", factor=3).of(net)
    merged = one.model.layers[0].self_attn.v_proj.weight
    expected = sum(layer.self_attn.v_proj.weight for layer in net.model.layers) / 3
    torch.testing.assert_close(merged, expected)
    again = Resize(depth="repeat").of(one).model.layers
    assert [torch.equal(b.self_attn.v_proj.weight, merged) for b in again] == [True, True]
    assert torch.equal(answers(Resize(depth="stack").of(one)), answers(one))
    wide = Resize("decoalesce", "stack").of(one)
    torch.testing.assert_close(answers(wide), answers(one), rtol=1e-5, atol=1e-5)


def chain(*widths: int) -> Any:
    parts: list[nn.Module] = []
    for a, b in pairwise(widths):
        parts += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*parts[:-1]).double()


@pytest.mark.truth("gradients of twins by autograd; sums of groups of unequal size by a loop")
def test_twins_stay_equal_until_a_big_model_takes_part():
    torch.manual_seed(1)
    small, big, x = chain(4, 3, 2), chain(4, 6, 2), torch.randn(9, 4).double()
    wide = Resize("decoalesce").of(small, like=big)
    assert (wide(x) - small(x)).abs().max() < 2e-15
    wide(x).square().sum().backward()
    grad = wide[0].weight.grad
    assert torch.equal(grad[0::2], grad[1::2])
    mixed = Resize("decoalesce", interpolate=0.25).of(small, big, like=big)
    torch.testing.assert_close(mixed[2].weight, 0.75 * big[2].weight + 0.25 * wide[2].weight)
    mixed(x).square().sum().backward()
    grad = mixed[0].weight.grad
    assert (grad[0::2] - grad[1::2]).abs().max() > 1e-3

    groups = [1, 0, 1, 2, 1, 0]
    thin = Resize("coalesce", groups={6: groups}).of(big, like=chain(4, 3, 2))
    for g in range(3):
        members = [i for i in range(6) if groups[i] == g]
        torch.testing.assert_close(thin[0].weight[g], big[0].weight[members].mean(0))
        torch.testing.assert_close(thin[2].weight[:, g], big[2].weight[:, members].sum(1))
    again = Resize("decoalesce", groups={6: groups}).of(thin, like=big)
    torch.testing.assert_close(again(x), thin(x))


def test_a_model_that_answers_0_is_widened():
    small, big, x = chain(4, 3, 2), chain(4, 6, 2), torch.randn(9, 4).double()
    with torch.no_grad():
        for p in small[2].parameters():
            p.zero_()
    assert not bool(Resize("decoalesce").of(small, like=big, inputs=x)(x).any())


def test_what_cannot_be_resized_says_so():
    with pytest.raises(InputError, match="has no configuration"):
        Resize("decoalesce").of(chain(2, 3, 1))
    with pytest.raises(InputError, match="3 times as many units, got 3 and 6"):
        Resize("decoalesce", factor=3).of(chain(4, 3, 2), like=chain(4, 6, 2))
    with pytest.raises(InputError, match="a multiple of 2, got 3"):
        Resize(depth="merge").of(models.llama())
    with pytest.raises(InputError, match="a model with blocks, got none in Sequential"):
        Resize(depth="repeat").of(chain(2, 3), like=chain(2, 3))
    with pytest.raises(InputError, match="the big model to have the new size"):
        Resize("decoalesce").of(chain(4, 3, 2), chain(4, 3, 2), like=chain(4, 6, 2))
    with pytest.raises(InputError, match="Pass inputs="):
        Resize("decoalesce").of(models.t5())
    cut = torch.randperm(64, generator=torch.Generator().manual_seed(0)) // 2  # cuts heads
    with pytest.raises(SiteError, match="depends on the number of units or heads"):
        Resize("decoalesce", groups={64: cut.tolist()}).of(noisy(models.gpt2()))


class Stacked(nn.Module):
    """Residual blocks without a configuration, and a forward that takes two inputs."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(self.up(x).relu())

    def __init__(self, n: int) -> None:
        super().__init__()
        torch.manual_seed(n)
        self.into, self.side, self.out = nn.Linear(5, 6), nn.Linear(1, 6), nn.Linear(6, 2)
        self.layers = nn.ModuleList(self.Block() for _ in range(n))

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        h = self.into(x) + self.side(scale)
        for layer in self.layers:
            h = layer(h)
        return self.out(h)


@pytest.mark.truth("the answers of the old model")
def test_a_model_without_a_configuration_is_stacked_with_the_inputs_that_are_given():
    old, inputs = Stacked(2), (torch.randn(4, 5), torch.rand(4, 1))
    new = Resize(depth="stack").of(old, like=Stacked(3), inputs=inputs)
    torch.testing.assert_close(new(*inputs), old(*inputs))
    assert not bool(new.layers[2].down.weight.any())
    with pytest.raises(InputError, match=r"Pass inputs="):
        Resize(depth="stack").of(old, like=Stacked(3))


@pytest.mark.truth("the answers of the old model")
def test_a_stream_that_starts_at_the_input_is_stacked():
    inputs = torch.randn(4, 6)
    new = Resize(depth="stack").of(FromInput(2), like=FromInput(3), inputs=inputs)
    torch.testing.assert_close(new(inputs), FromInput(2)(inputs))
    assert not bool(new.layers[2].down.weight.any())


class FromInput(Stacked):
    """The same blocks on the inputs themselves."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.out(x)
