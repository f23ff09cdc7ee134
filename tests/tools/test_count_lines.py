import doctest

from sonde.run.instruments.listing import listed
from tools import count_lines


def test_examples():
    assert doctest.testmod(count_lines).failed == 0


def test_machinery_is_what_is_no_family_and_no_study():
    files = {
        "src/sonde/__init__.py": "x = 1\n",
        "src/sonde/core/a.py": '"""Say."""\n\nx = 1\ny = 2\n',
        "src/sonde/measure/cka.py": "class CKA: ...\n",
        "packages/sonde-studies/src/sonde_studies/nac.py": "x = 1\n",
    }
    said = count_lines.table(files, {**files, "src/sonde/core/b.py": "x = 1\n"}, {"measure": 2})
    assert "machinery            3 code lines  (was 4)" in said
    assert "measure              2 methods" in said
    assert "for a method         2 lines of machinery" in said
    assert "sonde_studies        1 code lines  (was 1)" in said


def test_results_and_functions_are_no_methods():
    kinds = {m.export: m.kind for m in listed()}
    every = [m.kind for m in listed()]  # two families may use one name
    assert "MahalanobisScorer" not in kinds
    assert kinds["find_backdoor"] == "function"
    assert sum(count_lines.methods().values()) == sum(k != "function" for k in every)
