"""Models that write into memory of their own, or into their inputs: rows are as without that."""

import pytest
import torch
from torch import Tensor, nn

import sonde
from models import mlp
from narrow import present
from sonde.core.inputs import Model
from sonde.core.perturbation import Perturbation
from sonde.detect import MSP, ODIN
from sonde.run.watching.guard import Guard
from sonde.tap import Tap, live_stream, probe
from tap_inputs import Arrays


class Buffered(nn.Module):
    """A classifier that returns a part of one buffer, call after call."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.out = torch.zeros(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        return y if torch.is_grad_enabled() else self.out[: len(x)].copy_(y)


class Eager(nn.Module):
    """A classifier that centres its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.sub_(1.0))


class Poisoned(nn.Module):
    """A net over tokens that changes all that it gets, and leaves NaN where padding was."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Identity()

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        dropped = ~attention_mask[..., None].bool()
        x = self.last(inputs_embeds.mul_(2.0).masked_fill(dropped, torch.nan))
        attention_mask.fill_(1)
        return x


def rows(n: int = 64, width: int = 8) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(1))


def plain(x: Tensor) -> Tensor:
    with torch.no_grad():
        return mlp()(x)


@pytest.mark.truth("the same net without a buffer")
def test_logits_in_a_buffer_are_those_of_each_batch():
    how = Perturbation(eps=0.1)
    for step in (None, how):
        made = list(live_stream(Model(Buffered()), Arrays(rows()), "net.2", perturb=step))
        found = torch.cat([present(batch.logits) for batch in made])
        assert torch.equal(found, torch.cat([plain(x) for x in rows().split(4)]))
    expected = list(live_stream(Model(mlp()), Arrays(rows()), "2", perturb=how))
    for one, other in zip(made, expected, strict=True):
        assert torch.equal(one.extra["perturbed_logits"], other.extra["perturbed_logits"])


@pytest.mark.truth("the same net on inputs that were centred before")
def test_inputs_that_a_model_changes_are_kept():
    x, how = rows(), Perturbation(eps=0.1)
    stream = live_stream(Model(Eager()), Arrays(x), "net.2", perturb=how)
    expected = list(live_stream(Model(mlp()), Arrays(rows() - 1), "2", perturb=how))
    for _ in range(2):
        for one, other in zip(stream, expected, strict=True):
            assert torch.equal(one.rows["net.2:out"], other.rows["2:out"])
            found, wanted = one.extra["perturbed_logits"], other.extra["perturbed_logits"]
            torch.testing.assert_close(found, wanted)
    assert torch.equal(x, rows())


@pytest.mark.truth("twice the mean of the real tokens")
def test_the_second_forward_for_nan_in_padding_gets_what_the_first_one_got():
    x = rows(6 * 5, 3).view(6, 5, 3)
    mask = torch.arange(5) < torch.tensor([5, 3, 2, 4, 1, 5])[:, None]
    inputs = Arrays(x, "inputs_embeds", mask=mask, more={"attention_mask": mask})
    stream = live_stream(Model(Poisoned(), task="encoder"), inputs, "last", "mean")
    found = torch.cat([batch.rows["last:out"] for batch in stream])
    means = [2 * one[real].mean(0) for one, real in zip(x, mask, strict=True)]
    torch.testing.assert_close(found, torch.stack(means))


def test_a_layer_whose_output_is_changed_in_place_is_no_head():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).mul_(10.0)

    batch = next(iter(Arrays(rows()).batches(0, 4)))
    assert probe(Model(mlp()), batch).head == "4"
    assert probe(Model(Scaled()), batch).head is None


def test_a_mask_may_be_used_again_before_rows_are_asked_for():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.fc(x) * attention_mask[..., None]

    net, mask = Masked(), torch.tensor([[1, 1, 0], [1, 0, 0]])
    x = rows(2 * 3, 4).view(2, 3, 4)
    with Tap(net, ["fc"], "last") as tap, torch.no_grad():
        net(x, attention_mask=mask)
        mask.fill_(1)
        found = tap.rows["fc:out"]
    assert torch.equal(found, net.fc(x)[[0, 1], [1, 0]])


@pytest.mark.truth("the same guard around nets that work in no memory twice")
def test_a_guard_that_moves_inputs_leaves_a_reused_output_alone():
    scores = []
    for net, site in ((mlp(), "2"), (Buffered(), "net.2")):
        how = {"logits": True, "perturb": {"eps": 0.1}}
        stream = sonde.read(net, list(rows()), site, batch_size=4, **how)
        fitted = sonde.fit([MSP(), ODIN(eps=0.1)], stream, progress=False)
        with torch.no_grad(), Guard(net, fitted, alpha=None) as guard:
            assert torch.equal(net(rows(8)), plain(rows(8)))
        scores.append(guard.table()["score"].to_pylist())
    assert scores[0] == scores[1]
