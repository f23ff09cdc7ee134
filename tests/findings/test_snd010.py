import pytest
import torch
from torch import Tensor, nn

from findings._nets import assert_clear, assert_raised, checked, noise, tensors, tokens
from sonde.findings.codes.snd010 import SND010


class Branched(nn.Module):
    """Two branches of which only one is called."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        self.spare = nn.Sequential(nn.Linear(8, width), nn.Linear(width, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.truth("parameters counted by hand")
def test_a_branch_that_nothing_calls() -> None:
    finding = assert_raised(
        checked(SND010(), tensors(Branched(32).eval(), noise(20, 8))), "warning"
    )
    assert finding.sites == ("spare",)
    assert finding.figure.value == pytest.approx(0.5)
    assert "420 of 840 parameters" in finding.sentence


class Backbone(nn.Module):
    """A trunk and the head of its former task."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Linear(8, 24), nn.Linear(24, 16)
        self.old = nn.Linear(16, 12)

    def features(self, x: Tensor) -> Tensor:
        return self.body(self.stem(x).relu()).relu()


class Reheaded(nn.Module):
    """A head of its own on what a backbone gives before its former head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head = Backbone(), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone.features(x))


@pytest.mark.slow
def test_the_head_of_a_former_task_is_a_note() -> None:
    finding = assert_raised(checked(SND010(), tensors(Reheaded().eval(), noise(20, 8))), "note")
    assert finding.sites == ("backbone.old",)
    assert "head of an earlier task" in finding.sentence


class Tied(nn.Module):
    """An output tied to the embedding, and attention whose output weight a function uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(61, 16)
        self.attention = nn.ModuleList(
            [nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(2)]
        )
        self.out = nn.Linear(16, 61, bias=False)
        self.out.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        for layer in self.attention:
            x = x + layer(x, x, x, need_weights=False)[0]
        return (x * self.scale) @ self.out.weight.T


def test_tied_and_functional_weights_count_as_used() -> None:
    class Plain(Tied):
        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return super().forward(input_ids)

    assert_clear(checked(SND010(), tokens(Plain().eval(), [5, 6, 7, 8] * 5)))


class Experts(nn.Module):
    """Four experts of which a router reaches three."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router = nn.Linear(8, 4)
        self.experts = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.softmax(self.router(x), dim=1)
        return self.last(sum(weight[:, i, None] * self.experts[i](x) for i in range(3)))


def test_an_idle_expert_needs_many_tokens_to_count() -> None:
    stream = tensors(Experts().eval(), noise(20, 8), sites=["last"])
    assert_clear(checked(SND010(), stream))
    assert_raised(checked(SND010(tokens_per_expert=1), stream), "note")


class Rare(Branched):
    """Calls the spare branch for batches that hold a large number."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y + self.spare(x) if float(x.max()) > 100 else y


@pytest.mark.slow
def test_a_branch_that_one_batch_of_the_pass_calls() -> None:
    x = noise(400, 8)
    check = checked(SND010(), tensors(Rare(32).eval(), x))
    finding = assert_raised(check, "warning")
    # Two probe forwards, four of the self-check, one for the columns, and seven batches.
    assert "14 forward passes observed" in finding.sentence
    x[333, 0] = 1000.0
    stream = tensors(Rare(32).eval(), x)
    assert_clear(checked(SND010(), stream))
    assert not any(m._forward_pre_hooks for m in stream.model.module.modules())


def test_the_part_that_stays_silent_is_named_without_the_one_that_speaks() -> None:
    class Half(Branched):
        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            if float(x.max()) > 100:
                self.spare[0](x)
            return y

    x = noise(400, 8)
    x[333, 0] = 1000.0
    finding = assert_raised(checked(SND010(), tensors(Half(32).eval(), x)), "warning")
    assert finding.sites == ("spare.1",)
