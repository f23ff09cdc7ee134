from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional

import sonde
from findings._evidence import digits
from findings._nets import (
    assert_clear,
    assert_raised,
    checked,
    evidence_of,
    framed,
    noise,
    tensors,
)
from narrow import expect
from sonde.core.stream import Stream
from sonde.findings.codes.snd014 import SND014
from sonde.findings.codes.snd022 import SND022, _of_moments, directions, few_classes, few_outputs
from sonde.findings.evidence.answers.answers import judge_heads
from sonde.findings.evidence.answers.head_accuracy import Part
from sonde.findings.evidence.answers.head_answers import HeadAnswers, Heads
from sonde.findings.evidence.record import as_array
from sonde.stats import Moments
from sonde.store import Store, write_store


@pytest.mark.truth("eigenvalues of numpy's corrcoef")
def test_participation_ratio_of_correlations() -> None:
    import numpy as np

    x = noise(300, 12) @ noise(12, 12, seed=1)
    x[:, 5] = 4.0
    evidence = evidence_of(Stream.of(x))
    kept = [j for j in range(12) if j != 5]
    values = np.linalg.eigvalsh(np.corrcoef(x.double().numpy()[:, kept].T))
    assert directions(evidence.sites[0]) == pytest.approx(
        values.sum() ** 2 / (values**2).sum(), rel=1e-6
    )


@pytest.mark.truth("D / (1 + D / n) for white rows")
def test_white_rows_have_all_directions() -> None:
    figure = assert_clear(checked(SND022(), Stream.of(noise(2000, 20))))
    assert figure.value == pytest.approx(20 / (1 + 20 / 2000), rel=0.01)
    assert figure.low is not None
    assert figure.low < figure.value < figure.high  # type: ignore[operator]


def test_a_weight_of_rank_one_is_a_collapse() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 30), nn.Tanh(), nn.Linear(30, 30), nn.Tanh()).eval()
    with torch.no_grad():
        weight = expect(nn.Linear, module[2]).weight
        u, s, v = torch.linalg.svd(weight)
        weight.copy_(s[0] * torch.outer(u[:, 0], v[0]))
    finding = assert_raised(checked(SND022(), tensors(module, noise(300, 8))), "error")
    assert set(finding.sites) == {"2", "3"}


def test_one_huge_direction_is_no_collapse() -> None:
    x = noise(300, 20)
    x[:, 3] *= 1e4
    assert_clear(checked(SND022(), Stream.of(x)))


def test_two_directions_are_a_warning_and_few_units_are_not_judged() -> None:
    x = noise(300, 1) + 0.5 * noise(300, 20, seed=2)
    assert_raised(checked(SND022(), Stream.of(x.double())), "warning")
    assert checked(SND022(), Stream.of(noise(300, 3))).state == "not_applicable"


def test_few_directions_that_a_later_layer_widens_again_are_a_note() -> None:
    few = (noise(300, 1) + 0.5 * noise(300, 20, seed=2)).double()
    wide = noise(300, 20, seed=3).double()
    assert_raised(checked(SND022(), Stream.of({"early": few, "late": wide})), "note")
    assert_raised(checked(SND022(), Stream.of({"early": wide, "late": few})), "warning")
    one = (noise(300, 1) + 0.02 * noise(300, 20, seed=2)).double()
    assert_raised(checked(SND022(), Stream.of({"early": one, "late": wide})), "error")


@pytest.mark.truth("between over total variance, unit by unit, by numpy")
def test_two_collapsed_classes_are_left_to_another_code() -> None:
    label = torch.arange(300) % 2
    x = label[:, None] * torch.ones(20) + 0.1 * noise(300, 20)
    evidence = evidence_of(Stream.of(x, label=label))
    means = torch.stack([x[label == k].mean(0) for k in (0, 1)])
    truth = ((means - x.mean(0)).square().mean(0) / x.var(0, correction=0)).mean()
    assert few_classes(evidence.sites[0], evidence) == pytest.approx(float(truth), rel=1e-5)
    check = SND022().check(evidence)
    assert check.state == "withheld"
    assert "SND032" in check.reason


def test_labelled_nets_of_two_logits_need_one_direction() -> None:
    answer = noise(300, 1)
    x = answer * torch.linspace(0.5, 2.0, 20) + 0.1 * noise(300, 20, seed=2)
    label = (answer[:, 0] > 0).long()
    logits = torch.cat([answer, -answer], 1)
    assert_raised(checked(SND022(), Stream.of(x, label=label)), "error")
    told = checked(SND022(), Stream.of(x, label=label, logits=logits))
    assert "answers with 2 numbers" in told.reason
    twice = torch.cat([x, x], 1)
    assert checked(SND014(), Stream.of(twice, label=label)).state == "raised"
    told = checked(SND014(), Stream.of(twice, label=label, logits=logits))
    assert told.state == "not_applicable"


@pytest.mark.slow
def test_brightness_of_grey_images_is_no_collapse_and_one_filter_is() -> None:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)]
    module = nn.Sequential(*convolutions).eval()
    x = framed(digits()[0][:400])
    evidence = evidence_of(tensors(module, x))
    assert _of_moments(evidence.sites[1].moments) < 2.0
    assert_clear(checked(SND022(), evidence))
    with torch.no_grad():
        weight = convolutions[1].weight
        weight.copy_(weight[:1] * torch.arange(1.0, 17.0)[:, None, None, None])
    assert_raised(checked(SND022(), tensors(module, x)), "error")


def test_stored_means_of_a_convolution_say_how_bright_an_image_is_and_are_not_judged(
    tmp_path,
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)).eval()
    with torch.no_grad():
        module[1].weight.abs_()
    write_store(sonde.read(module, framed(digits()[0][:400])), tmp_path / "acts")
    evidence = evidence_of(Store(tmp_path / "acts"))
    assert _of_moments(evidence.sites[1].moments) < 1.2
    check = checked(SND022(), evidence)
    assert check.state == "withheld"
    assert "was read with mean pooling" in check.reason


@pytest.mark.slow
def test_first_filters_of_smooth_images_are_not_judged() -> None:
    x = functional.interpolate(digits()[0][:200].view(-1, 1, 8, 8), size=(32, 32), mode="bilinear")
    torch.manual_seed(0)
    entry = [nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16)]
    module = nn.Sequential(*entry, nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2)).eval()
    evidence = evidence_of(tensors(module, x))
    assert max(directions(site) for site in evidence.sites[:2]) < 2.0
    check = checked(SND022(), evidence)
    assert check.state in ("clear", "raised")
    assert set(check.tables["values"]) == {"2", "3"}


@pytest.mark.parametrize("wide", [False, True])
def test_what_few_numbers_feed_is_not_judged(wide: bool) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16)]
    entry = [nn.Linear(20, 1)] if wide else []
    x = noise(300, 20 if wide else 1)
    evidence = evidence_of(tensors(nn.Sequential(*entry, *layers).eval(), x))
    assert directions(evidence.sites[-1]) < 2.0
    assert checked(SND022(), evidence).state == "not_applicable"
    assert checked(SND014(), evidence).state == "not_applicable"


def test_points_of_few_numbers_and_what_three_classes_need_are_not_judged() -> None:
    draw = torch.Generator().manual_seed(0)
    label = torch.randint(3, (400,), generator=draw)
    wide = torch.tensor([[1.0, 1.0], [1.0, 0.2], [0.2, 1.0]])[label]
    points = torch.randn(400, 24, 2, generator=draw) * wide[:, None]
    torch.manual_seed(0)

    class Cloud(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each, self.rest = nn.Linear(2, 16), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rest(self.each(x).mean(1))

    evidence = evidence_of(tensors(Cloud().eval(), points))
    assert directions(evidence.sites[0]) < 2.01
    assert checked(SND022(), evidence).state == "not_applicable"
    assert checked(SND014(), evidence).state == "not_applicable"


@pytest.mark.truth("logits that a softmax cannot tell apart span the plane of the units")
def test_logits_of_three_classes_are_two_numbers() -> None:
    plane = noise(300, 2)
    units = plane @ noise(2, 12, seed=1) + 0.01 * noise(300, 12, seed=2)
    logits = plane @ noise(2, 3, seed=3) + 5 * noise(300, 1, seed=4)
    evidence = evidence_of(Stream.of(units.double(), logits=logits))
    n, share = few_outputs(evidence.sites[0], evidence)
    assert n == 2
    assert share > 0.99
    third = evidence_of(Stream.of(units.double(), logits=noise(300, 3, seed=5)))
    assert few_outputs(third.sites[0], third)[1] < 0.1


@cache
def regressor(n_outputs: int, seed: int) -> tuple[nn.Module, torch.Tensor]:
    """Return a net that has learned numbers, and what it learned on."""
    torch.manual_seed(seed)
    x, weight = noise(1000, 16, seed=seed), noise(16, n_outputs, seed=seed + 1) / 4
    weight[:, 1:] += weight[:, :1]
    y = (x @ weight).tanh()
    hidden = [nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()]
    net = nn.Sequential(*hidden, nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, n_outputs))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3, weight_decay=1e-3)
    for _ in range(400):
        optimizer.zero_grad()
        functional.mse_loss(net(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        assert functional.mse_loss(net(x), y) < 0.02 * y.var()
    return net.eval(), x


@pytest.mark.slow
@pytest.mark.parametrize("n_outputs", [1, 2])
def test_a_model_that_answers_with_few_numbers_has_few_directions(n_outputs: int) -> None:
    net, x = regressor(n_outputs, seed=3)
    evidence = evidence_of(tensors(net, x))
    low = [site for site in evidence.sites if site.alive.sum() >= 8 and directions(site) < 2.0]
    assert low
    assert SND022().check(evidence).state in ("clear", "withheld")
    assert SND022(explained=1.0, one=1.0, two=1.0).check(evidence).state == "raised"


@pytest.mark.slow
def test_a_collapse_beside_what_a_regressor_answers_is_one() -> None:
    net, x = regressor(1, seed=3)
    torch.manual_seed(0)

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.side, self.net = nn.Linear(16, 16), net

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.side(x)
            return self.net(x)

    module = Beside().eval()
    with torch.no_grad():
        u, s, v = torch.linalg.svd(module.side.weight)
        module.side.weight.copy_(s[0] * torch.outer(u[:, 0], v[-1]))
    finding = assert_raised(checked(SND022(), tensors(module, x)), "error")
    assert finding.sites == ("side",)


@pytest.mark.slow
@pytest.mark.truth("least squares and eigenvalues of numpy's corrcoef")
def test_share_of_the_main_direction_that_an_output_is() -> None:
    import numpy as np

    net, x = regressor(1, seed=3)
    evidence = evidence_of(tensors(net, x))
    site = evidence.sites[-2]
    rows, y = as_array(site.sample), evidence.column("logits", site)
    assert y is not None
    rows = rows[:, rows.std(0) > 0]
    corr = [np.corrcoef(rows[:, j], y[:, 0].double().numpy())[0, 1] for j in range(rows.shape[1])]
    largest = np.linalg.eigvalsh(np.corrcoef(rows.T)).max()
    n, share = few_outputs(site, evidence)
    assert n == 1
    assert share == pytest.approx(float(np.square(corr).sum() / largest), rel=1e-4)


@pytest.mark.truth("the width of the answers: one number, two classes, or four")
@pytest.mark.parametrize(("width", "state"), [(1, "clear"), (2, "clear"), (4, "raised")])
def test_the_limit_follows_the_width_of_the_answers(width: int, state: str) -> None:
    direction, aside = noise(300, 1) @ noise(1, 14, seed=1), noise(300, 14, seed=2)
    units = direction + 0.2 * aside  # between one and two directions
    label = (direction[:, 0] > 0).long()
    logits = aside[:, :width]  # that these directions do not explain
    rows = Stream.of(units, logits=logits, label=label)
    assert SND022().check(evidence_of(rows)).state == ("raised" if width == 4 else state)
    flat = Stream.of(direction + 1e-3 * aside, logits=logits, label=label)
    assert SND022(explained=1.1).check(evidence_of(flat)).state == "raised"


@pytest.mark.truth("maps of two and of four classes")
@pytest.mark.parametrize(("n", "state"), [(2, "clear"), (4, "raised")])
def test_a_map_of_two_classes_needs_one_direction(n: int, state: str) -> None:
    direction, aside = noise(300, 1) @ noise(1, 14, seed=1), noise(300, 14, seed=2)
    evidence = evidence_of(Stream.of(direction + 0.2 * aside))
    parts = tuple(Part(str(k), 0.9, 0.1) for k in range(n))
    right = torch.ones(300, dtype=torch.float64)
    head = HeadAnswers("", "label", "pixel_accuracy", right, right, tuple(range(300)),
                       torch.arange(300), parts=parts)  # fmt: skip
    assert SND022().check(evidence.having({judge_heads: Heads((head,))})).state == state


@pytest.mark.truth("rows of one direction, and tokens of as many as there are units")
def test_tokens_of_many_directions_are_no_collapse_though_their_means_have_one() -> None:
    torch.manual_seed(0)
    x = torch.outer(torch.randn(300), torch.randn(24)) + 0.01 * torch.randn(300, 24)
    (site,) = evidence_of(Stream.of(x)).sites
    assert directions(site) < 1.1
    for rank, high in ((24, 25), (1, 1.1)):
        tokens = torch.randn(900, rank) @ torch.randn(rank, 24)
        eighth = Moments("full").observe(tokens)
        seen = directions(replace(site, all=replace(site.all, eighth=eighth)))
        assert high / 4 < seen < high
