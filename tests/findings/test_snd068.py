"""Parts of a net whose labels are its own answers, so that only the plant is wrong."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import sonde
from findings._counting import Counter, counting
from findings._evidence import evidence_of as arrays
from findings._nets import assert_clear, assert_raised, evidence_of
from lm_twin_case import TEXTS, twin
from sonde.findings.codes.snd068 import SND068
from sonde.findings.evidence.facts import by_answers
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.lens import lens_evidence, measure_lens
from sonde.findings.evidence.trials.part_changes import PartChange, grid
from sonde.findings.evidence.trials.part_trials import PartTrials, part_trials
from sonde.findings.evidence.trials.tempered_loss import least_convex
from sonde.findings.rule import Check
from sonde.findings.trial import Trial
from sonde.findings.trial_budget import ForwardCost, TrialBudget
from sonde.tap import LiveStream

ROWS, DIM = 260, 12


class Part(nn.Module):
    """A norm and two layers around a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = nn.LayerNorm(DIM), nn.GELU()
        self.up, self.down = nn.Linear(DIM, 20), nn.Linear(20, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))


class Stack(nn.Module):
    """Four parts and a head; inputs of very different lengths, so that an epsilon matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        self.parts = nn.ModuleList([Part() for _ in range(4)])
        self.head = nn.Linear(DIM, 5)
        with torch.no_grad():
            for p in self.parts.parameters():
                p.mul_(2.5 if p.ndim == 2 else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return 3 * self.head(x)


@cache
def rows() -> tuple[Tensor, Tensor]:
    x = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, Stack()(x).argmax(1)


def changed(change: Callable[[Any], object]) -> nn.Module:
    net = Stack().requires_grad_(False).eval()
    with torch.no_grad():
        change(net)
    return net


def ended(net: nn.Module, label: Tensor | None = None) -> Check:
    x, own = rows()
    return ended_on(net, x, own if label is None else label)


def tried_on(net: nn.Module, x: Tensor, label: Tensor) -> tuple[Evidence, PartTrials | str]:
    stream = sonde.read(net, [{"x": r, "label": int(k)} for r, k in zip(x, label, strict=True)])
    assert isinstance(stream, LiveStream)
    evidence = evidence_of(stream)
    data = by_answers(evidence.data, stream.first_batch().logits)
    evidence = replace(evidence, data=data)
    return evidence, part_trials(stream, evidence)


def ended_on(net: nn.Module, x: Tensor, label: Tensor) -> Check:
    evidence, tried = tried_on(net, x, label)
    return SND068().check(evidence.having({part_trials: tried}))


def _stronger(net: Any) -> None:
    net.parts[2].down.weight.mul_(4)
    net.parts[2].down.bias.mul_(4)


def _turned(net: Any) -> None:
    net.parts[1].down.weight.neg_()
    net.parts[1].down.bias.neg_()


def _exchanged(net: Any) -> None:
    net.parts[0], net.parts[3] = net.parts[3], net.parts[0]


def _other_act(net: Any) -> None:
    for part in net.parts:
        part.act = nn.Tanh()


def _large_eps(net: Any) -> None:
    for part in net.parts:
        part.norm.eps = 3.0


PLANTS = {
    "output of parts.2.down times 0.": _stronger,
    "output of parts.1.down times -1": _turned,
    "parts.0 and parts.3 exchanged": _exchanged,
    "gelu for Tanh": _other_act,
    "for 3 in 4 LayerNorm": _large_eps,
}


@pytest.mark.slow
@pytest.mark.truth("planted: labels are the answers of the net without the change")
@pytest.mark.parametrize("words", PLANTS)
def test_the_part_is_named_with_what_mends_it(words: str) -> None:
    finding = assert_raised(ended(changed(PLANTS[words])), "warning")
    assert words in finding.sentence
    assert "correct on" in finding.fix


@pytest.mark.slow
def test_a_net_that_is_right_is_clear_and_labels_of_chance_name_no_part() -> None:
    assert_clear(ended(Stack().eval()))
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(2))
    assert_clear(ended(Stack().eval(), rows()[1][order]))


@pytest.mark.parametrize(("alone", "n_tried", "loss", "right", "state"), [
    (True, 5, 1.2, 0.7, "raised"), (True, 60, 1.2, 0.7, "clear"), (False, 5, 1.2, 0.7, "clear"),
    (False, 60, 0.7, 0.7, "clear"), (False, 60, 0.7, math.nan, "raised"),
])  # fmt: skip
def test_a_change_that_comes_first_or_halves_errors_needs_less_certainty(
    alone: bool, n_tried: int, loss: float, right: float, state: str
) -> None:
    change = PartChange("two exchanged", "load again", ("parts.1",), nullcontext, alone=alone)
    given, after = torch.full((40,), 1.5), torch.full((40,), loss)
    tried = PartTrials(
        change, given, after, 2.0, right, right + 0.1, p=0.007, unit="nats", of_tokens=False,
        n_tried=n_tried,
    )  # fmt: skip
    evidence = arrays(torch.randn(40, 3)).having({part_trials: tried})
    assert SND068().check(evidence).state == state


def growing(n: int = 6) -> Any:
    """Return a net whose parts change steadily over depth, as those of trained nets."""
    torch.manual_seed(4)
    net: Any = Stack()
    net.parts = nn.ModuleList([Part() for _ in range(n)])
    with torch.no_grad():
        for i, part in enumerate(net.parts):
            for k, p in enumerate(part.parameters()):
                p.mul_(1 + 0.3 * i + 0.2 * (k % 2) * (i - 2) ** 2).add_(0.02 * i)
    return net.eval().requires_grad_(False)


@pytest.mark.truth("planted: parts 1 and 4 are exchanged; labels are the answers before")
def test_exchanged_blocks_are_tried_even_if_the_budget_is_spent() -> None:
    net, x = growing(), rows()[0]
    label = net(x).argmax(1)
    net.parts[1], net.parts[4] = net.parts[4], net.parts[1]
    stream = sonde.read(net, [{"x": r, "label": int(k)} for r, k in zip(x, label, strict=True)])
    assert isinstance(stream, LiveStream)
    evidence = evidence_of(stream)
    data = by_answers(evidence.data, stream.first_batch().logits)
    spent = TrialBudget(lambda: (ForwardCost(1e6, 1e9), 0.0))
    evidence = replace(evidence, data=data, budget=spent)
    finding = assert_raised(
        SND068().check(evidence.having({part_trials: part_trials(stream, evidence)})), "warning"
    )
    assert "parts.1 and parts.4 exchanged" in finding.sentence
    assert "changes of parts not tried" in spent.text()


@pytest.mark.slow
def test_the_model_is_as_it_was_after_the_trials() -> None:
    net = changed(_large_eps)
    weights = deepcopy(net.state_dict())
    ended(net)
    assert all(torch.equal(net.state_dict()[k], w) for k, w in weights.items())
    assert {m.eps for m in net.modules() if isinstance(m, nn.LayerNorm)} == {3.0}
    assert not any(m._forward_hooks for m in net.modules())


@pytest.mark.slow
@pytest.mark.truth("the p-value of the same rows, each there once")
def test_copies_of_rows_do_not_make_a_change_surer() -> None:
    x, label = (part[:60] for part in rows())
    (_, once), (_, often) = (
        tried_on(changed(_stronger), x.repeat(n, 1), label.repeat(n)) for n in (1, 4)
    )
    assert isinstance(once, PartTrials)
    assert isinstance(often, PartTrials)
    assert once.change is not None
    assert often.change is not None
    assert once.change.words == often.change.words
    assert often.p == pytest.approx(once.p, rel=1e-3)
    assert once.trial is not None
    assert often.trial is not None
    assert often.trial.p == pytest.approx(once.trial.p)


@pytest.mark.slow
@pytest.mark.truth("planted: leaky activations in a net that was right with ReLU")
def test_a_small_net_that_is_mostly_right_is_tried_on_more_rows() -> None:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(DIM, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU())
    net.append(nn.Linear(24, 5)).requires_grad_(False).eval()
    for i in (0, 2, 4):
        net.get_parameter(f"{i}.weight").mul_(6)
    x = torch.randn(900, DIM)
    label = net(x).argmax(1)
    assert_clear(ended_on(net, x, label))
    net[1], net[3] = nn.LeakyReLU(0.05), nn.LeakyReLU(0.05)
    assert 0.9 < float((net(x).argmax(1) == label).double().mean()) < 0.97
    finding = assert_raised(ended_on(net, x, label), "warning")
    assert "elu for LeakyReLU at 1 and 1 more" in finding.sentence


class Summed(nn.Module):
    """A block whose last layer is added to its input before a norm, as BERT's."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(DIM, 20)
        self.out = nn.ModuleDict({"dense": nn.Linear(20, DIM), "norm": nn.LayerNorm(DIM)})

    def forward(self, x: Tensor) -> Tensor:
        return self.out["norm"](3 * self.out["dense"](torch.relu(self.up(x))) + x)


@pytest.mark.slow
@pytest.mark.truth("planted: labels are the answers of the net without the change")
def test_a_layer_before_a_sum_that_is_turned_is_named() -> None:
    torch.manual_seed(9)
    net: Any = Stack()
    net.parts = nn.ModuleList([Summed() for _ in range(3)])
    net.eval().requires_grad_(False)
    x = rows()[0]
    label = net(x).argmax(1)
    for parameter in net.get_submodule("parts.1.out.dense").parameters():
        parameter.neg_()
    finding = assert_raised(ended_on(net, x, label), "warning")
    assert "output of parts.1.out.dense times -1" in finding.sentence


class Pooled(nn.Module):
    """Three blocks over tokens and a head on their mean, or on the first of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = False
        self.table = nn.Embedding(40, DIM)
        self.blocks = nn.ModuleList([Part() for _ in range(3)])
        self.head = nn.Linear(DIM, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.table(input_ids)
        for block in self.blocks:
            x = block(x)
        weight = attention_mask[..., None].to(x)
        return 4 * self.head(x[:, 0] if self.first else (x * weight).sum(1) / weight.sum(1))


@pytest.mark.slow
@pytest.mark.truth("planted: labels are the answers of the same net with the mean over tokens")
def test_the_first_token_pooled_for_the_mean_is_named() -> None:
    net, draw = Pooled().eval().requires_grad_(False), torch.Generator().manual_seed(6)
    sizes = torch.randint(5, 12, (ROWS,), generator=draw).tolist()
    texts = [torch.randint(1, 40, (n,), generator=draw) for n in sizes]
    whole = [net(t[None], torch.ones(1, len(t)))[0] for t in texts]
    label = torch.stack(whole).argmax(1).tolist()

    def tried() -> Evidence:
        items = [{"input_ids": t.tolist(), "label": k} for t, k in zip(texts, label, strict=True)]
        stream = sonde.read(net, items)
        assert isinstance(stream, LiveStream)
        evidence = evidence_of(stream)
        evidence = replace(evidence, data=by_answers(evidence.data, stream.first_batch().logits))
        return evidence.having({part_trials: part_trials(stream, evidence)})

    assert_clear(SND068().check(tried()))
    net.first = True
    evidence = tried()
    finding = assert_raised(SND068().check(evidence), "warning")
    assert "the mean over tokens pooled" in finding.sentence
    assert finding.trial is not None
    assert float(finding.trial.after.mean()) > 0.9  # on texts that are cut to one length
    # few rows with a large loss leave the t test unsure, where hardly any answer becomes wrong
    assert isinstance(evidence.get(part_trials), PartTrials)
    unsure = replace(evidence.get(part_trials), p=0.002)
    assert_raised(SND068().check(evidence.having({part_trials: unsure})), "warning")
    same = replace(finding.trial, after=finding.trial.before)
    assert_clear(SND068().check(evidence.having({part_trials: replace(unsure, trial=same)})))


def test_no_forward_runs_if_the_budget_allows_no_change() -> None:
    stream, sizes = counting(Counter((1.0, 1.0)).eval(), n=64), list[int]()
    lens = lens_evidence(stream)
    budget = TrialBudget(lambda: (ForwardCost(0.0, 1.0), 60.0))
    evidence = replace(evidence_of(stream).having({measure_lens: lens}), budget=budget)
    hook = stream.model.module.register_forward_pre_hook(lambda *_: sizes.append(1))
    reason = part_trials(stream, evidence)
    hook.remove()
    assert isinstance(reason, str)
    assert "because the model is large" in reason
    assert sizes == []
    assert "changes of parts not tried" in budget.text()


@pytest.mark.truth("the least of all values")
def test_the_temperature_is_that_of_the_whole_grid() -> None:
    draw, every = torch.Generator().manual_seed(2), (1.0, *grid(0.05, 20, 25))
    for scale in (0.02, 0.6, 1.0, 7.0):
        label = torch.randint(0, 6, (80,), generator=draw)
        logits = scale * (3.0 * one_hot(label, 6) + 2 * torch.randn(80, 6, generator=draw)).double()
        losses = {f: float(cross_entropy(f * logits, label)) for f in every}
        assert least_convex(losses.__getitem__, every, 1.0) == min(every, key=losses.__getitem__)


@pytest.mark.parametrize(("mended", "level"), [(3, "note"), (9, "warning")])
def test_a_gain_of_few_answers_is_a_note(mended: int, level: str) -> None:
    before = torch.ones(60)
    before[:9] = 0
    after = before.clone()
    after[:mended] = 1
    rows = torch.arange(60)
    trials = PartTrials(
        PartChange("block 0 left out", "leave block 0 out", ("0",), nullcontext),
        given=torch.full((60,), 0.5), changed=torch.full((60,), 0.3), own=0.5,
        right=float(before.mean()), mended=float(after.mean()), p=1e-6, unit="nats",
        of_tokens=False, n_tried=40,
        trial=Trial("block 0 left out", "part", "accuracy", rows, before, after),
    )  # fmt: skip
    evidence = arrays(torch.randn(80, 4))
    assert_raised(SND068().check(evidence.having({part_trials: trials})), level)


@pytest.mark.slow
def test_a_large_language_model_is_tried_with_changes_of_all_layers_on_a_few_tokens() -> None:
    module: Any = deepcopy(twin().module)
    rope = module.model.rotary_emb
    n = len(rope.inv_freq)
    rope.inv_freq = 100.0 ** (-torch.arange(n) / n)
    texts = [f"{a} {b}" for a in TEXTS for b in TEXTS if a != b]
    stream = sonde.read(replace(twin(), module=module), texts)
    assert isinstance(stream, LiveStream)
    budget = TrialBudget(lambda: (ForwardCost(0.0, 1.0), 400.0))  # 4 trials of three short texts
    evidence = evidence_of(stream).having({measure_lens: lens_evidence(stream)})
    trials = part_trials(stream, replace(evidence, budget=budget))
    assert isinstance(trials, PartTrials)
    assert trials.change is not None
    assert trials.change.words.startswith("rope_theta 10,000 for 100")
    assert trials.p < 0.001
    assert trials.n_tried <= 1.5 * 400 / 24
