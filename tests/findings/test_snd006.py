import pytest
import torch
from torch import Tensor, nn

from findings._nets import assert_clear, assert_raised, checked, evidence_of, noise, tensors
from findings._texts import Forgetful, llama, padded
from sonde.findings.codes.snd004 import SND004
from sonde.findings.codes.snd006 import SND006


class Company(nn.Module):
    """Takes the mean of the batch off its rows, or a fixed one."""

    def __init__(self, of_batch: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 4)
        self.of_batch = of_batch

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(h - h.mean(0) if self.of_batch else h - 0.1)


class Places(nn.Module):
    """Adds the place of a row in its batch to it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(len(x), dtype=x.dtype)[:, None] / 8
        return self.last(torch.tanh(self.first(x)) + place)


def test_the_mean_of_the_batch_and_the_place_in_it() -> None:
    for module in (Company(True), Places()):
        evidence = evidence_of(tensors(module.eval(), noise(64, 8)))
        check = SND006().check(evidence)
        finding = assert_raised(check, "error")
        assert finding.sites == ("last",)
        assert finding.because_of is None
        assert_clear(SND004().check(evidence))


def test_a_batch_of_one_that_takes_another_path() -> None:
    class Squeezed(Company):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if len(x) > 1 else 2 * x)

    finding = assert_raised(
        checked(SND006(), tensors(Squeezed(False).eval(), noise(64, 8))), "error"
    )
    assert finding.sites == ("first", "last")


def test_rows_that_do_not_look_at_each_other() -> None:
    assert_clear(checked(SND006(), tensors(Company(False).eval(), noise(64, 8))))
    norm = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.Linear(12, 4)).eval()
    assert_clear(checked(SND006(), tensors(norm, noise(64, 8))))


@pytest.mark.slow
def test_texts_of_equal_length_are_compared_without_padding() -> None:
    assert_clear(SND006().check(padded(llama(), "left")))
    assert_clear(SND006().check(padded(Forgetful(False).eval(), "right")))


def test_one_row_has_no_company() -> None:
    check = checked(SND006(), tensors(Company(True).eval(), noise(1, 8)))
    assert check.state == "withheld"


def test_kernels_that_round_by_the_size_of_the_batch_are_no_fault() -> None:
    class Kernels(Company):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1.004 if len(x) > 4 else 1.0)

    assert_clear(SND006().check(evidence_of(tensors(Kernels(False).eval(), noise(64, 8)))))
    assert_raised(SND006().check(evidence_of(tensors(Kernels(True).eval(), noise(64, 8)))), "error")
