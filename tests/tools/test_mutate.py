"""Mutants change one thing each, and a method's own test is run on them."""

import subprocess
import sys

import pytest
from tools.mutate.mutants import mutants
from tools.mutate.trials import ROOT, SOURCE, own_tests

FORMULA = '''"""Say 1 + 1."""


def f(x: float = 3.0, *, loud: bool = False) -> float:
    """Return 2 * x."""
    if x < 0.5:
        raise ValueError(f"{x + 1} is below {2 * x}")
    return -x * 4 + 1e-9
'''


def test_each_mutant_changes_one_formula_and_no_message():
    found = [(m.line, m.change) for m in mutants(FORMULA)]

    assert sorted(found) == sorted(
        [
            (6, "x < 0.5 -> x <= 0.5"),
            (6, "0.5 -> 0.75"),
            (8, "-x * 4 + 1e-09 -> -x * 4 - 1e-09"),
            (8, "-x * 4 -> -x / 4"),
            (8, "-x -> x"),
            (8, "4 -> 5"),
        ]
    )
    assert all(compile(m.text, "f", "exec") for m in mutants(FORMULA))


TRIED = """
from tools.mutate.mutants import Mutant
from tools.mutate.trials import SOURCE, trials_of, warm_up
objective, energy = (SOURCE / "sonde" / at for at in ("explain/objective.py", "detect/energy.py"))
changes = {
    objective: [
        ("row.shape[1] == 1", "1 == row.shape[1]"),  # the same
        ("row.shape[1] == 1", "row.shape[1] == 2"),
        ("if not is_class", "if is_class"),  # runs at import
    ],
    energy: [("a.sum + b.sum", "a.sum - b.sum")],  # a merge, tried by laws
}
ran = warm_up([*changes])
for path, pairs in changes.items():
    text = path.read_text(encoding="utf-8")
    assert all(old in text for old, _ in pairs)
    chosen = [Mutant(1, new, text.replace(old, new)) for old, new in pairs]
    print(*(found.by for found in trials_of(path, chosen, 120, ran)))
"""


@pytest.mark.slow
def test_a_wrong_formula_is_noticed_and_the_right_one_is_not():
    # In a process of its own: here sonde is imported already.
    ran = subprocess.run(
        [sys.executable, "-c", TRIED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["nothing", "test", "test", "law"]


def test_a_file_without_a_test_of_its_own_has_those_that_lead_to_it():
    tests = ROOT / "tests" / "edit"

    assert own_tests(SOURCE / "sonde" / "edit" / "leace.py") == (tests / "test_leace.py",)
    assert tests / "test_leace.py" in own_tests(SOURCE / "sonde" / "edit" / "_eraser.py")
    assert tests / "test_inject.py" not in own_tests(SOURCE / "sonde" / "edit" / "_eraser.py")
