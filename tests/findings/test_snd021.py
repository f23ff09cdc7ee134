import pytest
import torch

from findings import _evidence as arrays
from findings._nets import assert_clear, assert_raised, checked, deep_relu, noise, tensors
from sonde.core.stream import Stream
from sonde.findings.codes.snd021 import SND021

ENDS = ("1", "11", "23")


@pytest.mark.truth("a ReLU layer of gain c scales the root mean square by c / sqrt 2")
def test_gains_above_and_below_the_critical_one() -> None:
    x = noise(64, 64)
    finding = assert_raised(
        checked(SND021(), tensors(deep_relu(12, 64, 4.0), x, sites=ENDS)), "warning"
    )
    assert finding.figure.value == pytest.approx((4 / 2**0.5) ** 11, rel=1.0)
    assert "grow" in finding.sentence
    finding = assert_raised(
        checked(SND021(), tensors(deep_relu(12, 64, 0.9), x, sites=ENDS)), "note"
    )
    assert "shrink" in finding.sentence


def test_the_critical_gain_is_clear() -> None:
    assert_clear(checked(SND021(), tensors(deep_relu(12, 64, 2**0.5), noise(64, 64), sites=ENDS)))


def test_huge_rows_do_not_move_the_median() -> None:
    x, y = noise(200, 16), noise(200, 16, seed=1)
    y[:20] *= 1e6
    assert_clear(checked(SND021(), Stream.of({"a": x, "b": y})))


def test_width_alone_is_no_growth() -> None:
    stream = Stream.of({"a": noise(64, 2), "b": noise(64, 2000)})
    assert assert_clear(checked(SND021(), stream)).value < 1.6


@pytest.mark.truth("the norms of planted rows")
@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((1.0, 1e20), ("grow at least 7.8e6 times", "0.99 to at least 7.7e6 (")),
        ((1e-20, 1.0), ("grow at least", "at most 2.5e-13 to")),
        ((1.0, 1e5), ("grow 100,000 times", "to 98,000 (")),
    ],
)
def test_norms_beyond_the_grid_are_told_as_bounds(
    sizes: tuple[float, float], words: tuple[str, ...]
) -> None:
    first, last = (noise(64, 16).double() * size for size in sizes)
    check = checked(SND021(), Stream.of({"a": first, "b": last}))
    assert check.finding is not None
    for word in words:
        assert word in check.finding.sentence


@pytest.mark.truth("answers in the unit of the targets, above states of unit size")
def test_answers_of_a_regression_are_not_compared_with_states() -> None:
    inner, answers = noise(200, 16), 5e4 * noise(200, 1)
    sites = {"a": inner, "b": answers}
    numbers = arrays.evidence_of(sites, logits=answers, facts={"target": torch.arange(200.0)})
    assert SND021().check(numbers).state == "not_applicable"
    classes = arrays.evidence_of(sites, logits=answers)
    assert_raised(SND021().check(classes), "warning")
