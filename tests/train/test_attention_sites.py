"""Maps of attention as rows of losses: against eager attentions that a model returns by itself."""

import copy

import pytest
import torch
from torch import Tensor, nn

import models
from sonde.core import SiteError
from sonde.tap.training.terms import training
from sonde.train import Align, AttentionEntropy


class Kept(nn.Module):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.probs, self.mask = torch.empty(0), torch.empty(0)

    def forward(self, probs: Tensor, mask: Tensor) -> Tensor:
        self.probs, self.mask = probs, mask
        return (probs * mask).square().mean()


def texts(left: bool) -> dict[str, Tensor]:
    ids = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(3, 7, dtype=torch.int64)
    mask[1, slice(0, 3) if left else slice(4, 7)] = 0
    return {"input_ids": ids, "attention_mask": mask}


def in_sight(mask: Tensor, causal: bool) -> Tensor:
    """Return which keys each query may see, padded queries none, by hand."""
    n = mask.shape[1]
    seen = torch.zeros(len(mask), 1, n, n, dtype=torch.bool)
    for b in range(len(mask)):
        for q in range(n):
            for k in range(q + 1 if causal else n):
                seen[b, 0, q, k] = bool(mask[b, q]) and bool(mask[b, k])
    return seen


@pytest.mark.truth("gradients of the loss on the attentions that the eager model returns")
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("build", [models.llama, models.bert])
def test_entropy_at_a_block_is_that_of_the_attentions_by_hand(build, left):
    net, given = build().train(), texts(left)
    plain = copy.deepcopy(net)
    for one in (net, plain):
        for module in one.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    loss = AttentionEntropy(0.2, 0.05, learned=False)
    with training(net, {"blocks.1:probs": loss}) as terms:
        net(**given)
        found = terms.loss()
    found.backward()

    plain.set_attn_implementation("eager")
    maps = plain(**given, output_attentions=True).attentions[1]
    expected = loss(maps, in_sight(given["attention_mask"], build is models.llama))
    expected.backward()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    pairs = zip(net.named_parameters(), plain.named_parameters(), strict=True)
    for (name, p), (_, q) in pairs:
        if q.grad is not None and bool(q.grad.any()):
            torch.testing.assert_close(p.grad, q.grad, rtol=2e-4, atol=2e-7, msg=name)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_probabilities_are_those_before_dropout_and_the_model_keeps_its_bits(kernel):
    net, given = models.gpt2().train(), texts(left=False)
    net.set_attn_implementation(kernel)
    for block in net.transformer.h:
        block.attn.attn_dropout.p = 0.4
    torch.manual_seed(3)
    net(**given).logits.sum().backward()
    expected = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    kept = Kept()
    with training(net, {"blocks.0:probs": kept}, weight=0.0) as terms:
        torch.manual_seed(3)
        net(**given).logits.sum().backward()
        assert terms.n_hooks == 0
    with training(net, {"blocks.0:probs": kept}) as terms:
        net.zero_grad()
        torch.manual_seed(3)
        net(**given).logits.sum().backward(retain_graph=True)
        found = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        terms.loss().backward()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    seen = kept.mask.any(3)
    assert int(seen.sum()) == 7 + 4 + 7
    torch.testing.assert_close(kept.probs.sum(3)[seen.expand(3, 4, 7)], torch.ones(4 * (7 + 4 + 7)))


@pytest.mark.truth("the cross entropy of the attentions that both eager models return")
def test_attention_of_a_teacher_with_other_heads():
    net, given = models.llama().train(), texts(left=True)
    torch.manual_seed(5)
    other = models.qwen2()
    with training(
        net, {("blocks.0:probs", "teacher:blocks.2:probs"): Align("cross_entropy")}, teacher=other
    ) as terms:
        net(**given)
        found = terms.loss()
    for one in (net, other):
        one.set_attn_implementation("eager")
    with torch.no_grad():
        target = other(**given, output_attentions=True).attentions[2]
        x = net(**given, output_attentions=True).attentions[0]
    seen = in_sight(given["attention_mask"], causal=True)
    each = [
        -(target[b, :, q, seen[b, 0, q]] * x[b, :, q, seen[b, 0, q]].log()).sum(1).mean()
        for b in range(3)
        for q in range(7)
        if int(seen[b, 0, q].sum()) > 1
    ]
    torch.testing.assert_close(found, torch.stack(each).mean(), rtol=1e-5, atol=1e-6)


def test_one_head_other_ports_and_a_port_that_is_no_attention():
    net, given, kept = models.llama().train(), texts(left=False), Kept()
    with training(net, {"blocks.0:probs.2": kept}) as terms:
        net(**given)
        terms.loss()
    assert kept.probs.shape == (3, 1, 7, 7)

    class Rows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.shape = x.shape
            return x.square().mean()

    rows = Rows()
    with training(net, {"blocks.0:heads": rows}) as terms:
        net(**given)
        terms.loss().backward()
    assert rows.shape == (3, 32)
    with (
        pytest.raises(SiteError, match="expected an attention"),
        training(models.mlp(), {"0:probs": kept}),
    ):
        pass


@pytest.mark.truth("the loss on the maps of the eager model, weighted by examples")
def test_maps_of_other_lengths_are_evaluated_batch_by_batch():
    net, loss = models.gpt2(), AttentionEntropy(0.2, 0.05, learned=False)
    long, short = (texts(left=False)["input_ids"][:n, :m] for n, m in ((3, 7), (1, 4)))
    with training(net, {"blocks.1:probs": loss}) as terms:
        (found,) = terms.evaluate([({"input_ids": long}, {}), ({"input_ids": short}, {})]).values()
    net.set_attn_implementation("eager")
    values = []
    for ids in (long, short):
        maps = net(input_ids=ids, output_attentions=True).attentions[1]
        seen = in_sight(torch.ones_like(ids), causal=True)
        values.append(float(loss(maps, seen).detach()))
    assert found == pytest.approx((3 * values[0] + values[1]) / 4, rel=1e-5)
