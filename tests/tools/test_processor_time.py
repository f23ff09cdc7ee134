"""The limit of processor time fails a test in CI alone, and elsewhere lists it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(("ci", "code"), [("1", 1), ("", 0)])
def test_a_slow_test_fails_in_ci_and_is_listed_elsewhere(tmp_path: Path, ci: str, code: int):
    (tmp_path / "conftest.py").write_text(
        "import processor_time\nprocessor_time.LIMIT_SECONDS = 0.0\n"
        "processor_time.LOOP_SECONDS = 1e9\npytest_plugins = ['processor_time']\n"
    )
    (tmp_path / "test_a.py").write_text("def test_a():\n    sum(range(2_000_000))\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        env=os.environ | {"CI": ci, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT / 'src'}"},
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "test_a.py::test_a" in done.stdout
    assert "@pytest.mark.slow" in done.stdout
