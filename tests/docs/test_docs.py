"""The code in the docs runs, and the docs build strictly."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "howto").glob("*.md")),
]
PRINTED = re.compile(r"^```output\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def code_of(page: Path) -> str:
    """Return the Python of a page as one program, in order."""
    return "\n".join(BLOCK.findall(page.read_text(encoding="utf-8")))


WITH_CODE = [page for page in PAGES if page.stem != "methods" and code_of(page)]


def test_some_pages_have_code():
    assert {"README", "tutorial", "write_an_instrument"} <= {page.stem for page in WITH_CODE}


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_code_runs(page: Path, tmp_path: Path):
    script = tmp_path / "page.py"
    script.write_text(code_of(page))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    printed = "".join(PRINTED.findall(page.read_text(encoding="utf-8"))).split()
    if printed:
        assert_prints(done.stdout.split(), printed)


def assert_prints(words: Sequence[str], shown: Sequence[str]) -> None:
    """Check that a page shows what its code prints, figures within 0.02 of it."""
    assert len(words) == len(shown)
    for word, wanted in zip(words, shown, strict=True):
        if word != wanted:
            assert float(word) == pytest.approx(float(wanted), abs=0.02)


@pytest.mark.slow
def test_docs_build_without_a_warning(tmp_path: Path):
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "docs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "methods" / "mahalanobis.html").exists()
    assert (tmp_path / "findings" / "snd011.html").exists()


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 150
