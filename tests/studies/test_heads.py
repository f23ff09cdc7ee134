"""Accuracy of a head on rows that it was not fitted to."""

import pytest
import torch

from sonde_studies.parts.heads import head_accuracy, linear_head


@pytest.mark.truth("two classes on a line, one label of four is wrong")
def test_only_later_rows_are_judged():
    x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0], [-3.0], [3.0], [-1.5], [1.5]])
    label = torch.tensor([0, 0, 1, 1, 0, 1, 0, 0])
    assert head_accuracy(linear_head(1.0), x, label, 4) == 0.75
    assert head_accuracy(linear_head(1.0), x, label, 6) == 0.5
