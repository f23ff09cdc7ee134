"""What acts in a forward, what moves at a step, and what is kept of losses at sites."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import models
from sonde.core import InputError, SiteError, SondeWarning, StateError
from sonde.core.schedule import StopAt, StopWhen
from sonde.tap.training.terms import training
from sonde.train import (
    Align,
    AttentionEntropy,
    Contrast,
    MaskedFeatures,
    Mixup,
    NestedDropout,
    Orthogonal,
    RateReduction,
)

LABEL = torch.tensor([0, 2, 2, 0, 1, 1])


def pictures() -> Tensor:
    return torch.randn(6, 1, 9, 7, generator=torch.Generator().manual_seed(1))


def vectors() -> Tensor:
    return pictures().flatten(1)[:, :7]


@pytest.mark.truth("the same change written into the forward by hand")
def test_nested_dropout_acts_on_channels_in_training_and_nowhere_else():
    net, x = models.cnn().train(), pictures()
    nested = NestedDropout(widths=(3,))
    with training(net, {"conv1": nested, "conv2": RateReduction()}) as terms:
        out = net(x)
        terms.loss(label=LABEL)
        assert set(terms.figures) == {"RateReduction(conv2:out)"}
        with torch.no_grad():
            assert torch.equal(net(x), copy.deepcopy(net).eval()(x))
        cut = net.conv1(x) * (torch.arange(8) < 3)[:, None, None]
        expected = net.fc(net.act2(net.conv2(net.act1(cut))).mean((2, 3)))
        torch.testing.assert_close(out, expected)
        net.eval()
        assert not torch.allclose(net(x), out)
        terms.loss(label=LABEL)


@pytest.mark.truth("the same mixing written into the forward by hand")
def test_mixup_mixes_at_its_site_and_is_the_loss_of_the_answers():
    net, x = models.mlp(7).train(), vectors()
    mixup, other = Mixup(per="row", seed=4), Mixup(per="row", seed=4)
    with training(net, {"1": mixup}, weight=StopAt(1.0, 1)) as terms:
        logits = net(x)
        found = terms.loss(logits=logits, label=LABEL)
        terms.step()
        assert terms.n_hooks == 0
        assert torch.equal(net(x), net(x))
    made = net[2:](other.change(net[:2](x)))
    torch.testing.assert_close(found, other(made, LABEL))
    with training(net, {"1": mixup}) as terms:
        net(x)
        with pytest.raises(InputError, match="needs logits"):
            terms.loss(label=LABEL)
    with (
        pytest.raises(SiteError, match="port out for a loss that changes"),
        training(net, {"1:in": mixup}),
    ):
        pass


class Checked(nn.Module):
    """A layer that is recomputed in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        out = checkpoint(self.a, x, use_reentrant=False)
        assert isinstance(out, Tensor)
        return out


def test_a_change_under_checkpointing_is_refused():
    net = Checked()
    with (
        training(net, {"a": NestedDropout()}),
        pytest.raises(StateError, match="checkpointing off"),
    ):
        net(vectors())


@pytest.mark.truth("the moving average of the weights by hand")
def test_a_teacher_that_is_the_moving_average_of_the_model_and_goes_on(tmp_path):
    def run(steps: int, start: nn.Module, path=None):
        net = copy.deepcopy(start).train()
        align = Align("mse")
        averages = [copy.deepcopy(net.state_dict())]
        teacher = AveragedModel(net, multi_avg_fn=_half)
        optimiser = torch.optim.SGD(net.parameters(), lr=0.2)
        with training(net, {("0", "teacher:2"): align}, teacher=teacher) as terms:
            if path is not None:
                held = torch.load(path / "net.pt")
                net.load_state_dict(held["net"])
                terms.load(path / "terms.safetensors")
            for _ in range(steps):
                loss = net(vectors()).square().mean() + terms.loss()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                terms.step()
                averages.append(copy.deepcopy(net.state_dict()))
            terms.save(tmp_path / "terms.safetensors")
            torch.save({"net": net.state_dict()}, tmp_path / "net.pt")
        return net, teacher, averages

    start = models.mlp(7)
    net, teacher, seen = run(3, start)
    expected = seen[1]["0.weight"]  # the first step copies
    for one in seen[2:]:
        expected = 0.5 * expected + 0.5 * one["0.weight"]
    torch.testing.assert_close(teacher.module.state_dict()["0.weight"], expected)
    run(1, start)
    again, its, _ = run(2, start, tmp_path)
    for one, other in ((again, net), (its.module, teacher.module)):
        assert torch.equal(one.state_dict()["2.weight"], other.state_dict()["2.weight"])
    with (
        pytest.raises(StateError, match="another kind of the teacher"),
        training(net, {("0", "teacher:2"): Align("mse")}, teacher=start) as terms,
    ):
        terms.load(tmp_path / "terms.safetensors")


@torch.no_grad()
def _half(averages, models, n):
    for a, b in zip(averages, models, strict=True):
        a.mul_(0.5).add_(b, alpha=0.5)


def test_the_word_ema_is_a_copy_that_follows():
    net = models.mlp(7)
    with training(net, {("0", "teacher:0"): Align()}, teacher="ema") as terms:
        net(vectors())
        assert float(terms.loss().detach()) == pytest.approx(-1.0)
    with (
        pytest.raises(InputError, match="'ema' as teacher, got 'self'"),
        training(net, {"0": Contrast()}, teacher="self"),
    ):
        pass


def test_rows_in_the_memory_are_part_of_the_state(tmp_path):
    net, file = models.mlp(7), tmp_path / "terms.safetensors"

    def batch(n: int) -> Tensor:
        return torch.randn(6, 7, generator=torch.Generator().manual_seed(n))

    with training(net, {"2": Contrast(memory=10)}) as terms:
        for n in range(3):
            net(batch(n))
            terms.loss(label=LABEL)
            terms.step()
            if n == 1:
                terms.save(file)
        net(batch(3))
        expected = terms.loss(label=LABEL)
    other = Contrast(memory=10)
    with training(net, {"2": other}) as terms:
        terms.load(file)
        assert other.kept_rows.shape == (10, 16)
        for n in (2, 3):
            net(batch(n))
            found = terms.loss(label=LABEL)
            terms.step()
    assert torch.equal(found, expected)


def test_a_penalty_on_a_weight_reads_no_forward():
    net = models.cnn()
    with training(net, {"conv2:weight": Orthogonal(stride=2)}, weight=0.5) as terms:
        found = terms.loss()
        assert terms.n_hooks == 0
    torch.testing.assert_close(found, 0.5 * Orthogonal(2)(net.conv2.weight))
    found.backward()
    assert net.conv2.weight.grad is not None


def test_states_as_they_are_and_several_losses_at_one_site():
    net, ids = models.llama().train(), torch.randint(5, 60, (2, 6))
    masked, rate = MaskedFeatures(rebuilder="conv"), Align("relational")
    keys = {"blocks.1": masked, ("blocks.2", "blocks.0"): [rate, Align()]}
    reducers = {"blocks.1": None, ("blocks.2", "blocks.0"): "tokens"}
    with training(net, keys, reducer=reducers) as terms:
        net(ids)
        terms.loss()
        assert len(terms.figures) == 3
        assert sum(name.endswith(" 2") for name in terms.figures) == 1
        assert masked.empty.shape == (32,)
    with (
        pytest.raises(InputError, match="expected reducer for"),
        training(net, keys, reducer={"blocks.1": None}),
    ):
        pass


def test_parameters_that_no_optimiser_holds_are_told():
    net = models.mlp(7)
    with training(net, {("0", "2"): Align("cosine", "linear", width=16)}) as terms:
        with pytest.raises(StateError, match=r"Run the model and terms\.loss"):
            terms.parameters()
        optimiser = torch.optim.AdamW(net.parameters())
        for step in range(5):
            net(vectors())
            terms.loss().backward()
            optimiser.step()
            if step < 4:
                terms.step()
        with pytest.raises(StateError, match=r"Give terms\.parameters"):
            terms.step()
    with training(net, {("0", "2"): Align("cosine", "linear", width=16)}) as terms:
        net(vectors())
        terms.loss()
        optimiser = torch.optim.AdamW([*net.parameters(), *terms.parameters()])
        for _ in range(7):
            net(vectors())
            terms.loss().backward()
            optimiser.step()
            optimiser.zero_grad()
            terms.step()


def test_accumulated_batches_of_a_loss_of_all_rows_are_told_once_a_memory_is_missing():
    net = models.mlp(7)
    for loss, told in ((Contrast(), True), (Contrast(memory=6), False), (Align(), False)):
        key = ("0", "2") if isinstance(loss, Align) else "2"
        with training(net, {key: loss}) as terms:
            for step in range(2):
                for _ in range(2):
                    net(vectors())
                    terms.loss(label=LABEL)
                if told and step == 1:
                    with pytest.warns(SondeWarning, match="gradients of 2 batches"):
                        terms.step()
                else:
                    terms.step()


@pytest.mark.parametrize(
    ("loss", "n", "columns", "told"),
    [
        (Align("relational"), 1, {}, "expected 2 rows or more"),
        (Align(), 0, {}, "expected 1 row or more"),
        (Contrast(), 6, {"label": torch.zeros(6).long()}, "rows of two classes or examples"),
        (Contrast(), 6, {"label": LABEL[:4]}, "each of 6 rows of the loss .*, got 4 entries"),
        (Contrast(), 6, {"label": LABEL.float()}, "whole numbers as label"),
        (Contrast(), 6, {"label": LABEL, "lable": LABEL}, "no loss takes 'lable'. Did you mean"),
        (nn.Identity(), 6, {}, "expected one number from the loss"),
    ],
)
def test_what_a_loss_cannot_take_is_said(loss, n, columns, told):
    net = models.mlp(7)
    key = ("0", "2") if isinstance(loss, Align) else "0"
    with training(net, {key: loss}) as terms:
        net(vectors()[:n])
        with pytest.raises(InputError, match=told):
            terms.loss(**columns)


def test_a_teacher_that_takes_other_inputs_and_what_is_no_module():
    net = models.mlp(7)
    key = ("0", "teacher:0")
    with (
        training(net, {key: Align()}, teacher=models.mlp(5)),
        pytest.raises(InputError, match="the teacher Sequential does not accept"),
    ):
        net(vectors())


def test_a_site_that_did_not_run_is_named():
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(7, 4), nn.Linear(7, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x)

    net = Branch()
    with training(net, {"b": RateReduction()}) as terms:
        net(vectors())
        with pytest.raises(SiteError, match="b:out did not run"):
            terms.loss(label=LABEL)


def test_a_figure_that_stays_below_a_threshold_ends_a_loss_for_good(tmp_path):
    stop = StopWhen(0.5, threshold=0.1, patience=2)
    net = models.mlp(7)
    with training(net, {"2": Contrast()}, weight=stop) as terms:
        for cosine in (0.05, 0.3, 0.0, -0.2, 0.9):
            assert terms.n_hooks == 1 or cosine == 0.9
            net(vectors())
            terms.loss(label=LABEL)
            stop.tell(cosine)
            terms.step()
        assert terms.n_hooks == 0
        terms.save(tmp_path / "terms.safetensors")
    with training(net, {"2": Contrast()}, weight=replace(stop)) as terms:
        terms.load(tmp_path / "terms.safetensors")
        assert terms.n_hooks == 0


@pytest.mark.parametrize(
    ("site", "loss"),
    [
        ("blocks.0:probs", partial(AttentionEntropy, 0.4)),
        ("blocks.1", partial(MaskedFeatures, rebuilder="conv", width=3, target="pixels", seed=2)),
        (("blocks.0", "blocks.1"), partial(Align, projector="linear", width=32)),
        ("blocks.1", partial(Contrast, prototypes=2)),
    ],
)
def test_what_is_made_at_the_first_call_is_made_by_a_file_too(tmp_path, site, loss):
    net, ids = models.llama().train(), torch.randint(5, 60, (2, 6))
    reducer = None if site == "blocks.1" and loss.func is MaskedFeatures else "mean"

    def value(terms):
        net(ids)
        net(ids.flip(1))
        return terms.loss(views=2, **({"y": torch.ones(24, 3)} if reducer is None else {}))

    torch.manual_seed(1)
    with training(net, {site: loss()}, reducer=reducer) as terms:
        value(terms)
        terms.save(tmp_path / "a")
        expected = value(terms)
    torch.manual_seed(2)
    with training(net, {site: loss()}, reducer=reducer) as terms:
        terms.load(tmp_path / "a")
        assert len(terms.parameters()) > 0
        assert torch.equal(value(terms), expected)


class Spectral(nn.Module):
    """A loss of a user: the log-determinant of the rows' products, and of the answers'."""

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        return torch.logdet(x.T @ x + 1e-3 * torch.eye(x.shape[1])) + logits.square().mean()


@pytest.mark.truth("the same states in float64")
def test_under_autocast_a_loss_of_a_user_sees_states_in_float32():
    net, x = models.mlp(7), vectors()
    with torch.autocast("cpu", torch.bfloat16), training(net, {"0": Spectral()}) as terms:
        logits = net(x)
        assert logits.dtype == torch.bfloat16
        rows = net[0](x).double()
        found = terms.loss(logits=logits)
        found.backward()
    exact = torch.logdet(rows.T @ rows + 1e-3 * torch.eye(16)) + logits.double().square().mean()
    assert float(found.detach()) == pytest.approx(float(exact.detach()), rel=1e-3)
