"""Models that did forget a class, only fell silent about it, or did nothing."""

import json
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind
from tests.student import student
from torch import nn

from sonde import InputError, Model
from sonde.edit import Forgotten
from sonde.edit.forgetting import RowLosses, Standing, membership_attack
from sonde_studies.parts.forgotten_groups import audit_by_groups
from sonde_studies.parts.forgotten_rows import audit_by_losses, difference_of_inputs
from sonde_studies.parts.traces import Reading, shuffled
from sonde_studies.recipes.unlearning_audit import unlearning_audit


def items(x, label):
    return [{"x": row, "label": int(c)} for row, c in zip(x, label, strict=True)]


@pytest.fixture(scope="module")
def world():
    """Return a net that tells four kinds apart by four units of its states, and rows of them."""
    draw = torch.Generator().manual_seed(4)
    label = torch.randint(0, 4, (420,), generator=draw)
    x = 2.5 * torch.eye(6)[label] + 0.5 * torch.randn(420, 6, generator=draw)
    first, last = nn.Linear(6, 6), nn.Linear(6, 4)
    net = nn.Sequential(first, nn.ReLU(), last).eval()
    with torch.no_grad():
        first.weight.copy_(torch.eye(6) + 0.1 * torch.randn(6, 6, generator=draw))
        first.bias.fill_(0.1)
        last.weight.copy_(torch.eye(6)[:4])
        last.bias.zero_()
    own = label == 2
    return net, items(x[own], label[own]), items(x[~own], label[~own])


def blind(net):
    """Return a net that cannot tell the kind 2 from the kind 0: one column counts for the other."""
    copy = deepcopy(net)
    with torch.no_grad():
        copy[0].weight[:, 2] = copy[0].weight[:, 0]
    return copy


def silent(net):
    copy = deepcopy(net)
    with torch.no_grad():
        copy[2].bias[2] = -100
    return copy


@pytest.mark.slow
@pytest.mark.truth("what was done to the weights")
def test_each_way_to_forget_gets_its_verdict(world):
    net, own, others = world
    ways = {"not forgotten": net, "only silent": silent(net), "gone": blind(net)}
    for wanted, module in ways.items():
        found = unlearning_audit(
            Model(net), Model(module), own, others, gold=Model(blind(net)), progress=False
        )
        assert found.verdict == wanted
        assert (found.level == "clear") == (wanted == "gone")
        rows = {row["model"]: row for row in found.rows}
        if wanted == "only silent":
            assert rows["after"]["forget accuracy"] == 0
            assert rows["after"]["head of before"] == rows["before"]["head of before"] > 0.9
        if wanted == "gone":
            assert float(found.value) == 0
            assert rows["after"]["head of before"] < 0.7


@pytest.mark.truth("the entries of each matrix, sorted")
def test_the_control_has_the_same_weights_in_another_order(world):
    net = world[0]
    other = shuffled(Model(net), 1).module
    for (name, was), now in zip(net.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(was.flatten().sort().values, now.flatten().sort().values), name
        assert torch.equal(was, now) == (was.ndim < 2), name


@pytest.mark.slow
def test_classes_on_both_sides_are_refused(world):
    net, own, others = world
    with pytest.raises(InputError, match=r"with the classes \[2\] in both"):
        unlearning_audit(Model(net), Model(net), own, others + own[:3], progress=False)


@pytest.mark.truth("a head that says the class of every row: half of both sides are right")
def test_a_reader_that_names_the_class_of_any_row_reads_nothing():
    everywhere = Reading(np.ones(7), np.ones(11))
    assert everywhere.accuracy() == 0.5
    some = Reading(np.array([1.0, 1, 0, 1, 1, 1, 1]), np.array([0.0] * 10 + [1.0]))
    gain, error = some.beyond(everywhere)
    assert gain == pytest.approx((-1 / 7 + 10 / 11) / 2)
    parts = student(7) ** 2 * (6 / 49) / 6, student(11) ** 2 * (10 / 121) / 10
    assert error == pytest.approx(np.sqrt(sum(parts)) / 2)


@pytest.mark.slow
@pytest.mark.truth("which rows a net learned by heart")
def test_rows_of_classes_that_stay_are_audited_by_their_losses():
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(240, 12, generator=draw)
    label = torch.randint(0, 3, (240,), generator=draw)
    rows = items(x, label)
    forget, retain, held = rows[:80], rows[80:160], rows[160:]

    def learned(part, seed):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 3))
        adam = torch.optim.Adam(net.parameters(), lr=0.02)
        for _ in range(80):
            adam.zero_grad()
            nn.functional.cross_entropy(net(x[part]), label[part]).backward()
            adam.step()
        return Model(net.eval())

    before, anew, gold = (learned(slice(a, 160), s) for a, s in ((0, 0), (80, 1), (80, 2)))
    for after, wanted in ((before, "not forgotten"), (anew, "gone by its losses")):
        found = unlearning_audit(
            before, after, forget, retain, held=held, gold=gold, progress=False
        )
        assert found.verdict == wanted
    found = unlearning_audit(anew, gold, forget, retain, held=held, progress=False)
    assert found.verdict == "cannot tell"
    found = unlearning_audit(before, before, forget, retain, held=held, progress=False)
    assert found.verdict == "not forgotten"
    strange = [row | {"x": row["x"] + 1.0} for row in held]
    found = unlearning_audit(before, before, forget, retain, held=strange, progress=False)
    assert found.verdict == "cannot tell"
    assert "differ as inputs" in found.sentence


@pytest.mark.truth("99 % of a normal law lie within 2.576 standard errors")
def test_without_a_gold_model_the_attack_is_tested_at_one_percent():
    draw = torch.Generator().manual_seed(0)
    kept = [torch.rand(80, generator=draw).double() for _ in "ab"]
    seen, anew = membership_attack(kept[0] - 1, kept[1]), membership_attack(*kept)
    side = {part: Standing(1.0, 0.5, 80) for part in ("forget", "retain", "held")}
    for errors, wanted in ((2.3, "gone"), (-2.3, "gone"), (2.9, "not"), (-2.9, "stands")):
        value = 0.5 + errors * float(anew.se)
        low, high = (value + 1.96 * sign * float(anew.se) for sign in (-1, 1))
        now = replace(anew, value=value, low=low, high=high)
        said = Forgotten(side, side, None, now, seen, None)
        assert audit_by_losses(said, 80, 0.5).verdict.startswith(wanted)
        unlike = audit_by_losses(said, 80, 0.01)
        assert (unlike.verdict, unlike.level) == ("cannot tell", "warning")
        assert "the two parts differ as inputs (p = 0.01)" in unlike.sentence


@pytest.mark.truth("rows of one law, and rows moved by one standard deviation")
def test_held_rows_that_differ_from_those_to_forget_are_recognized():
    draw = torch.Generator().manual_seed(5)
    label = torch.zeros(40, dtype=torch.int64)

    def part(move, label=label):
        return SimpleNamespace(last=torch.randn(40, 6, generator=draw) + move, label=label)

    alike = [difference_of_inputs(part(0.0), part(0.0)) for _ in range(40)]
    assert sum(p <= 0.1 for p in alike) <= 9  # 10 % of 40, and two standard deviations
    assert max(difference_of_inputs(part(0.0), part(1.0)) for _ in range(10)) < 0.05
    assert difference_of_inputs(part(0.0), part(0.0, label + 1)) < 0.05


@pytest.mark.truth("scipy.stats.ttest_ind of the means of groups, which are the units")
def test_losses_of_groups_are_tested_with_groups_as_units():
    draw = np.random.default_rng(3)
    size = {k: int(draw.integers(3, 9)) for k in range(9)}
    group = torch.tensor([k for k, n in size.items() for _ in range(n)])
    loss = draw.normal(2.0, 1.0, len(group)) + np.repeat(draw.normal(size=9), [*size.values()])
    n = sum([*size.values()][:2])
    parts = {
        name: RowLosses(
            torch.from_numpy(loss[at]), torch.ones(len(group[at])), group[at], group[at]
        )
        for name, at in (("forget", slice(n)), ("held", slice(n, None)))
    }
    side = {part: Standing(1.0, 0.5, 80) for part in ("forget", "retain", "held")}
    said = Forgotten(side, side, None, None, None, None, {"before": parts, "after": parts})
    found = audit_by_groups(said)
    mean = [loss[group.numpy() == key].mean() for key in size]
    wanted = ttest_ind(mean[2:], mean[:2])
    assert found.value == pytest.approx(np.mean(mean[2:]) - np.mean(mean[:2]))
    assert found.value / found.se == pytest.approx(wanted.statistic)
    interval = wanted.confidence_interval(0.99)
    assert found.rows[1]["low"] == pytest.approx(interval.low)
    assert found.rows[1]["high"] == pytest.approx(interval.high)


def test_a_person_who_is_harder_than_one_other_is_not_taken_for_remembered():
    draw = torch.Generator().manual_seed(6)
    x, label = torch.randn(90, 4, generator=draw), torch.randint(0, 2, (90,), generator=draw)
    x[:30, 0] = 4.0 * label[:30] - 2.0  # the first person is easy for every model
    net = nn.Linear(4, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]]))
        net.bias.zero_()
    person = torch.arange(90) // 30
    rows = [r | {"person": str(int(p))} for r, p in zip(items(x, label), person, strict=True)]
    model = Model(nn.Sequential(net).eval())
    how = {"held": rows[30:60], "group_column": "person", "progress": False}
    found = unlearning_audit(model, model, rows[:30], rows[60:], **how)
    assert (found.verdict, found.se) == ("cannot tell", None)
    assert "of more other groups (got 1)" in found.advice[0]
    assert "no interval from so few groups" in found.sentence
    json.dumps(found.rows, allow_nan=False)  # pages hold the rows as JSON


@pytest.mark.truth("rows of a model that did not change, and of one that knows the first rows")
def test_with_a_gold_model_each_loss_counts_less_the_gold_models():
    draw = torch.Generator().manual_seed(1)
    hard = 3 * torch.rand(80, generator=draw).double()  # hard for every model
    noise = 0.05 * torch.randn(3, 80, generator=draw).double()
    known = torch.where(torch.arange(80) < 40, 0.1, 0.0)

    def part(loss):
        group = torch.arange(40)
        sides = {"forget": loss[:40], "held": loss[40:]}
        keys = {"forget": group, "held": group + 40}
        return {name: RowLosses(x, torch.ones(40), group, keys[name]) for name, x in sides.items()}

    losses = {"before": hard - known + noise[0], "retrained": hard + noise[1]}
    side = {name: Standing(1.0, 0.5, 40) for name in ("forget", "retain", "held")}
    for after, verdict in ((losses["before"], "not forgotten"), (hard + noise[2], "gone")):
        rows = {name: part(x) for name, x in (losses | {"after": after}).items()}
        attacks = [membership_attack(*(rows[name][p].loss for p in ("forget", "held")))
                   for name in ("after", "before", "retrained")]  # fmt: skip
        found = audit_by_losses(Forgotten(side, side, side, *attacks, rows), 40, None)
        assert found.verdict.startswith(verdict)
        assert attacks[0].low < 0.5 < attacks[0].high


def test_copies_of_rows_to_forget_make_no_interval_narrower():
    draw = torch.Generator().manual_seed(8)
    x, label = torch.randn(90, 4, generator=draw), torch.randint(0, 2, (90,), generator=draw)
    torch.manual_seed(8)
    model, gold = (Model(nn.Sequential(nn.Linear(4, 2)).eval()) for _ in range(2))
    rows = items(x, label)
    how = {"held": rows[30:60], "gold": gold, "progress": False}
    once, copied = (unlearning_audit(model, model, rows[:30] * n, rows[60:], **how) for n in (1, 5))
    assert copied.value == pytest.approx(once.value)
    assert copied.se == pytest.approx(once.se, rel=0.15)  # 2.2 times narrower if each row counts


def test_a_model_that_answers_nan_is_named():
    x, label = torch.randn(90, 4), torch.arange(90) % 2
    model, broken = (nn.Sequential(nn.Linear(4, 2)).eval() for _ in range(2))
    broken[0].bias.data[0] = float("nan")
    rows = items(x, label)
    with pytest.raises(InputError, match="NaN for 30 of 30 forget examples on the model 'after'"):
        unlearning_audit(
            Model(model), Model(broken), rows[:30], rows[60:], held=rows[30:60], progress=False
        )
