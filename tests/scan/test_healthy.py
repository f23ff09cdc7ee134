"""Trained nets of kinds that once raised warnings; all kinds: ``scan.zoo_table --trained``."""

from pathlib import Path

import pytest

from scan._healthy import healthy, kinds
from scan._zoo import examine

ONCE_LOUD = ("two-class-sigmoid", "two-class-deep", "dynamic-quantisation", "multi-task")


def test_the_zoo_has_at_least_sixty_kinds() -> None:
    names = [k.name for k in kinds()]
    assert len(names) == len(set(names)) >= 60


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:torch.ao.quantization")
@pytest.mark.parametrize("name", ONCE_LOUD)
def test_a_trained_net_raises_no_warning(name: str, tmp_path: Path) -> None:
    (animal,) = (a for a in healthy(tmp_path) if a.name == name)
    row = examine(animal)
    assert row.accuracy is not None
    assert row.accuracy > 0.9
    assert (row.failed, row.levels["warning"], row.levels["error"]) == ([], [], [])
