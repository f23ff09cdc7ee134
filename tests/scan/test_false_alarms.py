"""A healthy zoo raises no error and no warning, one model of each family.

``zoo_table.py`` scans all of each family that are trained or drawn from other seeds.
"""

import pytest

from scan._zoo import ARCHITECTURES, FAMILIES, HEADER, REGRESSORS, SEEDS, Animal, examine, zoo

pytestmark = pytest.mark.slow

LEARNED = 0.95
ANIMALS = list(zoo())
FIRST = [a for a in ANIMALS if not a.name.endswith(tuple(f" {seed}" for seed in SEEDS[1:]))]


def test_the_zoo_has_every_family_from_every_seed() -> None:
    drawn = 2 * (len(FAMILIES) + len(REGRESSORS))
    assert len(ANIMALS) == drawn * len(SEEDS) + len(ARCHITECTURES) + 2 >= 40
    assert len(FIRST) == drawn + len(ARCHITECTURES) + 2


@pytest.mark.parametrize("animal", FIRST, ids=lambda a: a.name)
def test_healthy_models_raise_no_error_and_no_warning(animal: Animal) -> None:
    row = examine(animal)
    print(f"\n{HEADER}", row, *row.sentences, sep="\n")
    assert (row.failed, row.levels["error"], row.levels["warning"]) == ([], [], [])
    if animal.name.startswith("trained"):
        assert row.accuracy is not None
        assert row.accuracy >= LEARNED
