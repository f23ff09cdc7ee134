"""Losses at sites of unmodified models, against the same losses written into the forward."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import models
from sonde.core import InputError, SiteError, StateError
from sonde.core.schedule import Constant, Ramp, StopAt
from sonde.tap.training.terms import training
from sonde.train import Align, Contrast, RateReduction, Separate

LABEL = torch.tensor([0, 2, 2, 0, 1, 1])


def pictures() -> Tensor:
    return torch.randn(6, 1, 9, 7, generator=torch.Generator().manual_seed(1))


def gradients(net: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    return found


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.truth("the loss written into the forward by hand: gradients bit for bit")
def test_gradients_are_those_of_the_loss_by_hand_before_a_module_that_writes_in_place():
    net, x, loss = models.cnn().train(), pictures(), RateReduction()
    with training(net, {"conv1": loss}, weight=0.3) as terms:
        (net(x).square().mean() + terms.loss(label=LABEL)).backward()
    found = gradients(net)

    hidden = net.conv1(x)
    rows = hidden.mean((2, 3))
    out = net.fc(net.act2(net.conv2(net.act1(hidden))).mean((2, 3)))
    (out.square().mean() + loss(rows, LABEL) * 0.3).backward()
    assert_same(found, gradients(net))


@pytest.mark.truth("means over real tokens, by hand")
def test_padding_does_not_count_and_a_teacher_has_no_gradients():
    net, other = models.llama().train(), models.llama()
    ids, mask = torch.randint(5, 30, (3, 7)), torch.ones(3, 7).long()
    mask[1, 4:] = 0
    sites = ("layers.0", "teacher:layers.2")
    with training(net, {sites: Align("mse")}, teacher=other) as terms:
        net(ids, attention_mask=mask)
        found = terms.loss()
    found.backward()
    assert all(p.grad is None for p in other.parameters())
    assert not other.training

    states = net(ids, attention_mask=mask, output_hidden_states=True).hidden_states[1]
    theirs = []
    with torch.no_grad():
        handle = other.model.layers[2].register_forward_hook(lambda *a: theirs.append(a[2]))
        other(ids, attention_mask=mask)
        handle.remove()
    weight = (mask / mask.sum(1, keepdim=True))[..., None]
    rows, target = (states * weight).sum(1), (theirs[0] * weight).sum(1)
    expected = (rows - nn.functional.layer_norm(target, target.shape[1:])).square().mean()
    torch.testing.assert_close(found, expected)


class Checked(nn.Module):
    """Two layers, the first recomputed in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(7, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = checkpoint(lambda x: self.a(x).tanh(), x, use_reentrant=False)
        assert isinstance(h, Tensor)
        return self.b(h)


def test_recomputation_and_validation_bring_no_rows():
    net, x = Checked(), pictures().flatten(1)[:, :7]
    with training(net, {"a": Separate("joint_entropy")}) as terms:
        net(x)
        with pytest.raises(InputError, match="needs y"):
            terms.loss()
    with training(net, {("a", "b"): Separate("joint_entropy")}) as terms:
        net(x)
        with torch.no_grad():
            net(x[:2])
        value = terms.loss()
        value.backward()
        with pytest.raises(StateError, match="got none since the last loss"):
            terms.loss()
    found = gradients(net)
    hidden = net.a(x)
    Separate("joint_entropy")(hidden, net.b(hidden.tanh())).backward()
    for a, b in zip(found, gradients(net), strict=True):
        torch.testing.assert_close(a, b)


def test_several_forwards_are_views_of_one_batch():
    net, x, loss = models.mlp(7).train(), pictures().flatten(1)[:, :7], Contrast(0.5)
    with training(net, {"2": loss}) as terms:
        net(x)
        net(x + 0.1)
        found = terms.loss()

    rows = [net[2](net[1](net[0](view))) for view in (x, x + 0.1)]
    expected = loss(torch.cat(rows), view=torch.arange(2).repeat_interleave(6))
    assert torch.equal(found, expected)


def test_a_schedule_that_is_over_takes_its_hooks_away():
    net, x = models.mlp(7).train(), pictures().flatten(1)[:, :7]
    losses = {"0": RateReduction(), "2": Contrast()}
    weight = {"0": StopAt(0.5, 1), "2": Ramp(1.0, 0.0, 2)}
    hooks = [len(m._forward_hooks) for m in net.modules()]
    with training(net, losses, weight=weight) as terms:
        for expected in ({"RateReduction(0:out)", "Contrast(2:out)"}, {"Contrast(2:out)"}, set()):
            net(x)
            terms.loss(label=LABEL)
            assert set(terms.figures) == expected
            terms.step()
        assert terms.n_hooks == 0
        assert hooks == [len(m._forward_hooks) for m in net.modules()]
        assert float(terms.loss(label=LABEL)) == 0.0
    assert Ramp(2.0, 1.0, 4, "cosine").weight(1) == pytest.approx(1.853553)
    assert Constant(0.0).is_over(0)


def test_a_loss_of_weight_0_has_no_parameters_for_the_optimiser():
    """The control of a sweep over weights runs through the same lines as the others."""
    net, x = models.mlp(7), pictures().flatten(1)[:, :7]
    for weight, n in ((0.0, 0), (0.5, 2)):
        with training(
            net, {("0", "2"): Align("cosine", "linear", width=16)}, weight=weight
        ) as terms:
            net(x)
            terms.loss()
            assert len(terms.parameters()) == n


def test_what_losses_learn_is_kept_and_other_losses_are_refused(tmp_path):
    net, x = models.mlp(7), pictures().flatten(1)[:, :7]
    sites = ("0", "2")
    align = Align("cosine", "linear", width=16)
    with training(net, {sites: align}) as terms:
        net(x)
        terms.loss().backward()
        assert all(p.grad is not None for p in terms.parameters())
        terms.step()
        terms.save(tmp_path / "terms.safetensors")
    other = Align("cosine", "linear", width=16)
    with training(net, {sites: other}) as terms:
        net(x)
        terms.loss()
        terms.load(tmp_path / "terms.safetensors")
        assert terms.n_steps == 1
    kept = zip(other.state_dict().values(), align.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in kept)
    with (
        training(net, {"0": Contrast()}) as terms,
        pytest.raises(StateError, match="Attach the same losses"),
    ):
        terms.load(tmp_path / "terms.safetensors")


def test_what_cannot_train_says_so():
    net, x = models.mlp(7), pictures().flatten(1)[:, :7]
    with (
        pytest.raises(InputError, match="needs teacher="),
        training(net, {("0", "teacher:0"): Align()}),
    ):
        pass
    net.requires_grad_(False)
    with training(net, {"0": RateReduction()}) as terms:
        net(x)
        with pytest.raises(SiteError, match="trains nothing"):
            terms.loss(label=LABEL)
    net.requires_grad_(True)
    with training(net, {"0": RateReduction()}) as terms:
        net(x * torch.inf)
        with pytest.raises(InputError, match="6 of 6 rows of 0:out are not finite at step 0"):
            terms.loss(label=LABEL)


@pytest.mark.truth("each loss on the rows of all examples, read by hand in eval mode")
def test_evaluation_is_the_loss_of_all_rows_and_leaves_the_training_alone():
    net, x = models.cnn().train(), pictures()
    net.act1 = nn.Sequential(net.act1, nn.Dropout(0.5))  # pyright: ignore
    losses = {"conv1": RateReduction(), ("conv1", "conv2"): Separate("joint_entropy")}
    with training(net, losses, weight={"conv1": StopAt(0.3, 1), ("conv1", "conv2"): 0.1}) as terms:
        (net(x).square().mean() + terms.loss(label=LABEL)).backward()
        terms.step()
        n_hooks = terms.n_hooks
        parts = [((x[:4],), {"label": LABEL[:4]}), (x[4:], {"label": LABEL[4:]})]
        found = terms.evaluate(parts)
        assert (terms.n_hooks, terms.n_steps, net.training, net.act1.training) == (2, 1, True, True)
        assert n_hooks == 2  # the first loss is over, and is evaluated
        net(x)
        with pytest.raises(StateError, match="a forward pass is still waiting for its loss"):
            terms.evaluate(parts)
        terms.loss(label=LABEL)
        with pytest.raises(StateError, match="one batch or more, got none"):
            terms.evaluate([])
        with pytest.raises(InputError, match="a tuple or a mapping of arguments as inputs, got"):
            terms.evaluate([([x], {})])
    with pytest.raises(InputError, match="the teacher is the model itself"):
        training(net, losses, teacher=net).__enter__()
    net.eval()
    with torch.no_grad():
        a = net.conv1(x)
        rows = a.mean((2, 3))  # the next module writes into its input
        other = net.conv2(net.act1(a)).mean((2, 3))
    expected = [RateReduction()(rows, LABEL), Separate("joint_entropy")(rows, other)]
    assert list(found.values()) == pytest.approx([float(one) for one in expected], rel=1e-5)
    assert terms.evaluate(parts) == found  # behind the block too
