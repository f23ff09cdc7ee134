"""A healthy zoo raises no error and no warning, family by family.

Of each family that is trained or drawn from several seeds two are scanned here; ``zoo_table.py``
scans all.
"""

import pytest

from scan._zoo import (
    ARCHITECTURES,
    FAMILIES,
    HEADER,
    REGRESSORS,
    SEEDS,
    Animal,
    examine,
    summary,
    zoo,
)

pytestmark = pytest.mark.slow

LEARNED = 0.95
TRIED = 2
ANIMALS = list(zoo())
GROUPS = {
    **{f"{how} {f}": len(SEEDS) for how in ("trained", "random") for f in [*FAMILIES, *REGRESSORS]},
    **{f"random {a.name}": 1 for a in ARCHITECTURES},
    "sonde:digits": 1,
    "sonde:stdlib": 1,
}


def members(group: str) -> list[Animal]:
    return [a for a in ANIMALS if a.name == group or a.name.startswith(f"{group} ")]


def test_every_model_of_the_zoo_is_in_one_group() -> None:
    assert len(ANIMALS) >= 40
    assert {group: len(members(group)) for group in GROUPS} == GROUPS
    assert sum(GROUPS.values()) == len(ANIMALS)


@pytest.mark.parametrize("group", GROUPS)
def test_healthy_models_raise_no_error_and_no_warning(group: str) -> None:
    rows = [examine(animal) for animal in members(group)[:TRIED]]
    print(f"\n{HEADER}", *rows, summary(rows), sep="\n")
    assert [r.name for r in rows if r.failed] == []
    assert [
        (r.name, r.levels[level]) for r in rows for level in ("error", "warning") if r.levels[level]
    ] == []
    if group.startswith("trained"):
        assert min(r.accuracy for r in rows if r.accuracy is not None) >= LEARNED
