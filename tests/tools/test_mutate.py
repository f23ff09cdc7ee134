"""Mutants change one thing each, and a method's own test is run on them."""

import subprocess
import sys

import pytest
from tools.mutate import ROOT, mutants

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


NOTICED = """
import sys
from pathlib import Path
from tools.mutate import SOURCE, method_test, notices
path = SOURCE / "sonde" / "measure" / "stable_rank.py"
text = path.read_text(encoding="utf-8")
for changed in (text, text.replace("return ", "return 2 * ")):
    print(notices(path, changed, method_test(path), 120))
"""


@pytest.mark.slow
def test_a_wrong_formula_is_noticed_and_the_right_one_is_not():
    # In a process of its own: here sonde is imported already.
    ran = subprocess.run(
        [sys.executable, "-c", NOTICED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["False", "True"]
