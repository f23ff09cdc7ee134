"""Tensors that a forward writes into, in each way of Python, and those that it only reads."""

import pytest
import torch

from sonde.tap.model.written import written_attributes


def copied(self, x):
    self.out[: len(x) + 1].copy_(x)


def assigned(self, x):
    self.out[0, 1:] = x * self.scale


def added(self, x):
    self.out[:3] += x * self.scale


def by_keyword(self, x):
    torch.add(x, self.scale, out=self.out, alpha=2)


def by_variable(self, x):
    part = self.out[: len(x)]
    part.copy_(self.scale)


def inside(self, x):
    self.out.data[x.sum() :].fill_(self.scale)


def read(self, x):
    y = (x * self.scale).add_(1)
    return (self.scale * y).mul_(2), self.net(x).sub_(self.scale), self.scale.requires_grad_()


@pytest.mark.parametrize("forward", [copied, assigned, added, by_keyword, by_variable, inside])
def test_a_tensor_that_is_written_into_is_found(forward):
    assert written_attributes(forward.__code__) == {"out"}


def test_a_tensor_that_is_only_read_is_not():
    assert not written_attributes(read.__code__)
