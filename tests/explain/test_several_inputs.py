"""A model of two inputs against the same model of one input that holds both, and against loops."""

import dataclasses
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d

import sonde.explain
from sonde.core import InputError, SondeError
from sonde.explain import (
    ActivationMax,
    Attributor,
    Baseline,
    ClassSensitivity,
    Comprehensiveness,
    Deletion,
    FaithfulnessViolation,
    FaultLines,
    GradTimesInput,
    Infidelity,
    Insertion,
    IntegratedGradients,
    MaskSensitivity,
    MeanAttribution,
    Objective,
    Occlusion,
    SanityChecks,
    SensitivityN,
    Shapley,
    SmoothGrad,
    Sufficiency,
    SurrogateRules,
)
from sonde.explain.attention import AttentionMap
from sonde.explain.class_activation import ClassActivation

ZERO = Baseline("zero")


class Pair(nn.Module):
    """Curved in both inputs and in their product."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.both, self.last = nn.Bilinear(3, 5, 6), nn.Linear(6, 3)

    def forward(self, left, right):
        curved = left.square().sum(1, keepdim=True) - right.sin().sum(1, keepdim=True)
        return self.last(torch.tanh(self.both(left, right)) + curved)


class Joined(nn.Module):
    """The same model as a function of one row of numbers."""

    def __init__(self, pair) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, x):
        return self.pair(x[:, :3], x[:, 3:])


class Nested(Joined):
    """The same model, called with a dict that is given by position, and a tuple."""

    def forward(self, batch, other):
        return self.pair(batch["left"], other[0])


def drawn(n, seed=0):
    """Return two inputs of one range in each example: noise is then alike in both."""
    draw = torch.Generator().manual_seed(seed)
    left, right = torch.randn(n, 3, generator=draw), torch.randn(n, 5, generator=draw)
    for x in (left, right):
        low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
        x.sub_(low).div_(high - low).mul_(3.0).sub_(1.3)
    return left, right


NET = Pair().eval()
LEFT, RIGHT = drawn(4)
ROWS = torch.cat((LEFT, RIGHT), dim=1)
WAYS = {
    "by position": (NET, (LEFT, RIGHT)),
    "by name, the other way round": (NET, {"right": RIGHT, "left": LEFT}),
    "nested": (Nested(NET), ({"left": LEFT}, (RIGHT,))),
}
GIVEN = {
    "baseline": ZERO,
    "n_orders": 2,
    "n": 5,
    "references": torch.cat(drawn(3, 1), dim=1),
}
FAMILY: list[Any] = [getattr(sonde.explain, name) for name in sonde.explain.__all__]
KINDS = [k for k in FAMILY if isinstance(k, type) and issubclass(k, Attributor) and k != Attributor]
METHODS = [
    kind(**{f.name: GIVEN[f.name] for f in dataclasses.fields(kind) if f.name in GIVEN})
    for kind in KINDS
]
JUDGES = [
    Deletion(ZERO, 2, steps=5),
    Insertion(ZERO, 2, steps=5),
    Comprehensiveness(ZERO, 2),
    Sufficiency(ZERO, 2),
    FaithfulnessViolation(3, ZERO),
    SensitivityN(ZERO, 6),
    Infidelity(ZERO, 6),
    SanityChecks(),
    ClassSensitivity(),
]


def outcome(method, net, inputs, **asked):
    """Return what a method finds, or the words of its refusal."""
    try:
        return method.explain(net, inputs, **asked)
    except SondeError as error:
        return str(error)


@pytest.mark.truth("the same net as a function of one row that holds both inputs")
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_every_attribution_explains_all_inputs_together(method):
    wanted = outcome(method, Joined(NET), ROWS)
    for name, (net, inputs) in WAYS.items():
        found = outcome(method, net, inputs)
        if isinstance(wanted, str):  # places or attentions: there are none
            assert isinstance(method, AttentionMap | ClassActivation) or "Name a layer" in wanted
            assert isinstance(found, str), name
            continue
        torch.testing.assert_close(found.value, wanted.value, atol=2e-5, rtol=1e-4, msg=name)
        assert [*found.parts] == found.conventions["inputs"].split(", "), name
        left, right = found.parts.values()
        assert left.shape == LEFT.shape, name
        torch.testing.assert_close(right, wanted.value[:, 3:], atol=2e-5, rtol=1e-4, msg=name)
        if wanted.gap is not None:
            torch.testing.assert_close(found.gap, wanted.gap, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.truth("the same net as a function of one row that holds both inputs")
@pytest.mark.parametrize("judge", JUDGES, ids=lambda j: type(j).__name__)
def test_every_judge_takes_places_of_all_inputs_away(judge):
    asks_again = isinstance(judge, SanityChecks | ClassSensitivity)
    method = IntegratedGradients(baseline=ZERO)
    given = method if asks_again else method.explain(Joined(NET), ROWS)
    wanted = judge.judge(Joined(NET), ROWS, given)
    for name, (net, inputs) in WAYS.items():
        given = method if asks_again else method.explain(net, inputs)
        found = judge.judge(net, inputs, given)
        assert found.value == pytest.approx(wanted.value, rel=1e-4), name
        assert found.null == (None if wanted.null is None else pytest.approx(wanted.null, rel=1e-4))
        assert found.conventions.get("inputs", "").count(",") == 1, name


@pytest.mark.truth("a midpoint sum along the way, and all orders of sets, written out")
def test_parts_add_up_to_the_rise_of_all_inputs():
    answers = NET(LEFT, RIGHT)
    target = answers.argmax(1)

    def f(left, right):
        return NET(left, right).gather(1, target[:, None])[:, 0]

    with torch.no_grad():
        rise = f(LEFT, RIGHT) - f(0 * LEFT, 0 * RIGHT)
    found = IntegratedGradients(baseline=ZERO).explain(NET, (LEFT, RIGHT))
    sums = [torch.zeros_like(LEFT), torch.zeros_like(RIGHT)]
    for i in range(150):
        points = [((i + 0.5) / 150 * x).requires_grad_(True) for x in (LEFT, RIGHT)]
        for k, slope in enumerate(torch.autograd.grad(f(*points).sum(), points)):
            sums[k] += slope / 150
    for part, mean, x in zip(found.parts.values(), sums, (LEFT, RIGHT), strict=True):
        torch.testing.assert_close(part, mean * x, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(sum(p.sum(1) for p in found.parts.values()), rise)
    groups = torch.tensor([0, 0, 1, 2, 2, 3, 0, 3])
    orders = torch.tensor([[a, b, c, d] for a in range(4) for b in range(4) for c in range(4)
                           for d in range(4) if {a, b, c, d} == {0, 1, 2, 3}])  # fmt: skip
    shares = torch.zeros(4, 4)
    with torch.no_grad():
        for order in orders.tolist():
            kept = [torch.isin(groups, torch.tensor(order[:k])) for k in range(5)]
            values = [f(LEFT * k[:3], RIGHT * k[3:]) for k in kept]
            for part, (before, after) in zip(order, pairwise(values), strict=True):
                shares[:, part] += (after - before) / len(orders)
    by_group = Shapley(ZERO, groups).explain(NET, (LEFT, RIGHT)).value
    for part in range(4):
        torch.testing.assert_close(by_group[:, groups == part].sum(1), shares[:, part])
    torch.testing.assert_close(by_group.sum(1), rise)


@pytest.mark.truth("the net with the other input as a constant")
@pytest.mark.parametrize("site", [":in.right", ":in.1"])
def test_one_input_is_explained_by_its_name(site):
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = NET

        def forward(self, right):
            return self.pair(LEFT[:1].expand(len(right), -1), right)

    left = LEFT[:1].expand(4, -1)
    for method in (IntegratedGradients(baseline=ZERO), Occlusion(ZERO), SmoothGrad(n=3)):
        wanted = method.explain(Held(), RIGHT)
        found = method.explain(NET, (left, RIGHT), site=site)
        torch.testing.assert_close(found.value, wanted.value)
        assert (found.conventions["site"], found.conventions["inputs"]) == (":in.right", "right")
        assert found.conventions["held"] == "left"
    by_key = Occlusion(ZERO).explain(Nested(NET), ({"left": left}, (RIGHT,)), site=":in.other_0")
    torch.testing.assert_close(by_key.value, Occlusion(ZERO).explain(Held(), RIGHT).value)


class Coded(nn.Module):
    """Reads numbers, a code of each example and two texts that share a table."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.kinds, self.words = nn.Embedding(5, 3), nn.Embedding(9, 4)
        self.both, self.last = nn.Bilinear(6, 8, 6), nn.Linear(6, 3)

    def forward(self, left, kind, text, other):
        return self.of(left, self.kinds(kind), self.words(text), self.words(other))

    def of(self, left, kind, text, other):
        texts = torch.cat((text.square().mean(1), other.sin().mean(1)), dim=1)
        return self.last(torch.tanh(self.both(torch.cat((left, kind), dim=1), texts)))


class Embedded(nn.Module):
    """The same model as a function of one row of numbers: embeddings in place of codes."""

    def __init__(self, coded) -> None:
        super().__init__()
        self.coded = coded

    def forward(self, x):
        left, kind, text, other = x.split((3, 3, 4 * 4, 2 * 4), dim=1)
        return self.coded.of(left, kind, text.unflatten(1, (4, 4)), other.unflatten(1, (2, 4)))


CODED = Coded().eval()
CODES = {
    "kind": torch.tensor([0, 3, 1, 3]),
    "text": torch.tensor([[1, 2, 3, 4], [5, 1, 1, 0], [8, 7, 2, 2], [0, 6, 3, 1]]),
    "other": torch.tensor([[2, 8], [1, 4], [7, 7], [3, 5]]),
}
BY_PLACE = ("Occlusion", "Shapley", "SurrogateRules", "SmoothGrad")
"""They remove a whole place at once, or add noise by the range of each input."""


@pytest.mark.truth("the same net as a function of one row that holds numbers and embeddings")
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_codes_that_are_embedded_are_explained_beside_numbers(method):
    tables = (CODED.kinds, CODED.words, CODED.words)
    with torch.no_grad():
        vectors = [table(x).flatten(1) for table, x in zip(tables, CODES.values(), strict=True)]
    rows = torch.cat([LEFT, *vectors], dim=1)
    if hasattr(method, "references"):
        method = dataclasses.replace(method, references=rows[1:] * 0.5)
    wanted = outcome(method, Embedded(CODED), rows)
    found = outcome(method, CODED, {"left": LEFT, **CODES})
    if isinstance(wanted, str):
        assert isinstance(found, str)
        return
    assert found.conventions["inputs"] == "left, kind, text, other"
    assert "held_inputs" not in found.flags
    shapes = [tuple(x.shape[1:]) for x in found.parts.values()]
    assert shapes == [(3,), (1, 3), (4, 4), (2, 4)]
    assert all(bool(part.any()) for part in found.parts.values())
    if type(method).__name__ not in BY_PLACE:
        torch.testing.assert_close(found.value, wanted.value, atol=2e-5, rtol=1e-4)


class Counted(nn.Module):
    """Reads numbers beside a count that no table turns into numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Linear(3, 2)

    def forward(self, left, count):
        return self.row(left) * count[:, None]


def test_integers_that_no_table_reads_are_flagged():
    inputs = {"left": LEFT, "count": torch.tensor([1, 2, 3, 4])}
    found = IntegratedGradients(baseline=ZERO).explain(Counted().eval(), inputs)
    assert (found.conventions["held"], found.flags) == ("count", ("held_inputs",))
    by_name = IntegratedGradients(baseline=ZERO).explain(Counted(), inputs, site=":in.left")
    assert by_name.flags == ()


class Mixed(nn.Module):
    """Reads a picture, a row, a mask and a number of its own type each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.picture, self.row = nn.Conv2d(2, 3, 3), nn.Linear(4, 3).double()

    def forward(self, image, row, pixel_mask=None, scale=None):
        seen = self.picture(image).tanh().mean((2, 3)).double() * self.row(row)
        return seen if scale is None else scale * seen


@pytest.mark.truth("a blur of the picture and a zero row, written out")
def test_each_input_has_its_own_baseline_places_and_type():
    draw = torch.Generator().manual_seed(1)
    image, row = torch.randn(3, 2, 5, 6, generator=draw), torch.randn(3, 4, generator=draw).double()
    net, scale = Mixed().eval(), torch.tensor(2.0)
    inputs = {"image": image, "row": row, "pixel_mask": torch.ones(3, 5, 6), "scale": scale}
    ones = torch.ones_like(image)
    box = partial(avg_pool2d, kernel_size=5, stride=1, padding=2, divisor_override=1)
    blur = box(image) / box(ones)
    why = Objective(target=1)
    found = IntegratedGradients().explain(net, inputs, objective=why)
    rise = net(image, row, scale=scale)[:, 1] - net(blur, 0 * row, scale=scale)[:, 1]
    torch.testing.assert_close(found.value.sum(1), rise.detach(), atol=1e-5, rtol=1e-5)
    assert found.conventions["baseline"] == "blur 5 (image), zero (row)"
    assert (found.conventions["inputs"], found.conventions["held"]) == ("image, row", "scale")
    assert {k: v.shape[1:] for k, v in found.parts.items()} == {"image": (2, 5, 6), "row": (4,)}
    assert found.per_place.shape == (3, 5 * 6 + 4)
    assert found.place_names[::31] == ("image 0", "row 1")
    fell = Occlusion().explain(net, inputs, objective=why)
    gone = image.clone()
    gone[:, :, 3, 4] = blur[:, :, 3, 4]  # a pixel is one place
    fall = net(image, row, scale=scale) - net(gone, row, scale=scale)
    torch.testing.assert_close(
        fell.per_place[:, 3 * 6 + 4], fall[:, 1].detach(), atol=1e-6, rtol=1e-5
    )
    means = MeanAttribution(Occlusion(), test=None, per="unit").explain(net, inputs, objective=why)
    assert means.value.shape == (2 + 4,)
    fitted = Baseline.fit(net, [inputs, {**inputs, "row": row + 1}])
    assert fitted.values is not None
    torch.testing.assert_close(
        fitted.values, torch.cat([image.mean((0, 2, 3)), (row.mean(0) + 0.5).float()])
    )


def test_other_explainers_ask_about_all_inputs():
    a, b = LEFT / LEFT.std(), RIGHT / RIGHT.std()
    top = ActivationMax(5, radius=1.5)
    found = top.explain(NET, (a, b), site="last", unit=1)
    wanted = top.explain(Joined(NET), torch.cat((a, b), 1), site="pair.last", unit=1)
    assert found.value == pytest.approx(wanted.value, rel=0.05)
    assert {name: x.shape for name, x in found.parts.items()} == {"left": (3,), "right": (5,)}
    mean = MeanAttribution(GradTimesInput(), Deletion(ZERO, 1, steps=2))
    several = [(LEFT[:1], RIGHT[:1]), (LEFT[1:], RIGHT[1:])]
    torch.testing.assert_close(
        mean.explain(NET, several).value, mean.explain(Joined(NET), ROWS).value
    )
    lines = FaultLines(steps=8)
    told = lines.explain(NET, (LEFT, RIGHT), concepts=torch.eye(8)).value
    assert told == pytest.approx(lines.explain(Joined(NET), ROWS, concepts=torch.eye(8)).value)


def test_what_cannot_be_explained_together_is_refused_with_advice():
    shared = LEFT[:1], RIGHT
    with pytest.raises(InputError, match=r"left \(1, 3\), right \(4, 5\).*site=':in.left'"):
        IntegratedGradients().explain(NET, shared)
    with pytest.raises(InputError, match="one tensor of rows"):
        SurrogateRules().explain(NET, (LEFT, RIGHT))
    with pytest.raises(InputError, match="a single input of pictures"):
        MaskSensitivity().judge(NET, (LEFT, RIGHT), torch.ones(4, 2, 2) > 0, labels=torch.arange(4))
