"""The code in the docs runs, each page as the main program of this process; the docs build."""

import contextlib
import io
import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "howto").glob("*.md")),
    *sorted((ROOT / "docs" / "coming_from").glob("*.md")),
]
PRINTED = re.compile(r"^```output\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHOWN = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!#|[a-z]+:)([^)\s]+)")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def code_of(page: Path) -> str:
    """Return the Python of a page as one program, in order."""
    return "\n".join(BLOCK.findall(page.read_text(encoding="utf-8")))


WITH_CODE = [page for page in PAGES if page.stem != "methods" and code_of(page)]


def test_some_pages_have_code():
    assert {"README", "tutorial", "write_an_instrument"} <= {page.stem for page in WITH_CODE}


def test_a_decision_begins_with_a_paragraph_that_says_what_was_decided():
    """A reader who knows no earlier text of the contract starts there."""
    for page in sorted((ROOT / "docs" / "decisions").glob("*.md")):
        title, first, *_ = page.read_text("utf-8").split("\n\n")
        assert title.startswith("# "), page.name
        assert not re.match(r"(\*\*)?(Text|Before|Asked|Now|Was|How|Decided)\b", first), page.name


def made_pages() -> list[Path]:
    """Return the pages and folders that the build of the docs makes, and git leaves out."""
    lines = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    return [ROOT / line.strip("/") for line in lines if line.startswith("/docs/")]


def test_links_of_pages_lead_somewhere_before_the_docs_are_built():
    """A reader of the repository has no pages that the build makes: {doc} names those."""
    made, dead = made_pages(), list[str]()
    assert ROOT / "docs" / "methods" in made
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        if any(page.is_relative_to(place) for place in (*made, ROOT / "docs" / "_build")):
            continue
        text = SHOWN.sub("", page.read_text("utf-8"))
        for target in LINK.findall(text):
            there = (page.parent / target.partition("#")[0]).resolve()
            if not there.exists() or any(there.is_relative_to(place) for place in made):
                dead.append(f"{page.relative_to(ROOT)}: {target}")
    assert dead == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # no error to a user
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = tmp_path / "page.py"
    script.write_text(code_of(page))
    monkeypatch.chdir(tmp_path)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), torch.random.fork_rng(devices=[]):
        runpy.run_path(str(script), run_name="__main__")
    printed = "".join(PRINTED.findall(page.read_text(encoding="utf-8"))).split()
    if printed:
        assert_prints(said.getvalue().split(), printed)


def assert_prints(words: Sequence[str], shown: Sequence[str]) -> None:
    """Check that a page shows what its code prints, figures within 0.02 of it."""
    assert len(words) == len(shown)
    for word, wanted in zip(words, shown, strict=True):
        if word != wanted:
            assert float(word) == pytest.approx(float(wanted), abs=0.02)


@pytest.mark.slow
def test_docs_build_without_a_warning(tmp_path: Path):
    # Six hundred pages of HTML take five times as long as all that can be wrong with them.
    some = [
        "index",
        "tutorial",
        "methods/mahalanobis",
        "findings/snd011",
        "howto/choose_a_detector",
    ]
    build(tmp_path, "dummy", "-W")
    said = build(tmp_path, "html", *(f"docs/{name}.md" for name in some))
    assert all("search index" in line for line in said.splitlines()), said  # not of all pages
    assert all((tmp_path / "html" / f"{name}.html").exists() for name in some)


def build(folder: Path, builder: str, *words: str) -> str:
    """Build the docs and return what was said; pages that were read are not read again."""
    command = [sys.executable, "-m", "sphinx", "-q", "-b", builder, "-d", str(folder / "read")]
    command += ["docs", str(folder / builder), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
