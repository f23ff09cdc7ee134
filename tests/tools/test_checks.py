"""The checks of the project's own shape pass, and each can fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKS = ("size", "exports", "truth")


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one check as a developer does."""
    command = [sys.executable, str(ROOT / "tools" / f"check_{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_check_passes(name: str):
    done = run(name)
    assert done.returncode == 0, done.stdout + done.stderr


def load(name: str):
    """Import one check from its file."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_studies_take_public_names_alone(tmp_path: Path):
    package, studies = tmp_path / "src" / "sonde", tmp_path / "src" / "sonde_studies"
    for folder, exported in ((package, "read"), (package / "detect", "knn")):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(f"__all__ = ['{exported}']\n")
    studies.mkdir()
    good = (
        "import sonde\nfrom sonde import read\nfrom sonde.detect import knn\n"
        "from sonde_studies._b import c\nsonde.read.__doc__\nsonde.detect.knn(c)\n"
    )
    (studies / "a.py").write_text(good)
    assert load("contracts").deep_imports(studies, package) == []
    (studies / "a.py").write_text(
        "import sonde.run\nfrom sonde import write\nfrom sonde.detect.knn import knn\n"
        "def f():\n    from sonde.detect import _bank\n    return sonde.detect.shrink(_bank)\n"
    )
    assert load("contracts").deep_imports(studies, package) == [
        "src/sonde_studies/a.py:1: sonde.run is not public",
        "src/sonde_studies/a.py:2: sonde.write is not public",
        "src/sonde_studies/a.py:3: sonde.detect.knn.knn is not public",
        "src/sonde_studies/a.py:5: sonde.detect._bank is not public",
        "src/sonde_studies/a.py:6: sonde.detect.shrink is not public",
    ]


@pytest.mark.slow
def test_imports_keep_their_contracts_and_planted_ones_break_each(tmp_path: Path):
    def lint(root: Path) -> str:
        path = os.pathsep.join([str(root / "src"), str(root / "packages/sonde-studies/src")])
        done = subprocess.run(
            [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
            cwd=root,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr

    assert "7 kept, 0 broken" in lint(ROOT)
    for folder in ("src", "packages", "tools"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    package, studies = tmp_path / "src/sonde", tmp_path / "packages/sonde-studies/src/sonde_studies"
    planted = {
        package
        / "core/a.py": "def f():\n    from sonde.stats import Moments\n    return Moments\n",
        package / "detect/a.py": "import sonde.measure.cka\nfrom sonde_studies import STUDIES\n",
        package / "run/fitting/a.py": "from sonde.run.scoring import score\n",
        package
        / "findings/evidence/modules/a.py": "import sonde.findings.evidence.trials.input_forms\n",
        package / "tap/hooks/a.py": "from sonde.tap.rows import nested\n",
        package / "data/a.py": "from sonde.data.b import c\n",
        package / "data/b.py": "def c():\n    import sonde.data.a as a\n    return a\n",
        studies / "a.py": "import sonde.run\n",
    }
    for path, text in planted.items():
        path.write_text(text)
    found = lint(tmp_path)
    assert "0 kept, 7 broken" in found, found
    for broken in ("core is not allowed", "detect is not allowed", "fitting is not", "hooks is not",
                   "modules is not",
                   "sonde.data.a -> sonde.data.b", "a.py:1: sonde.run is not public"):  # fmt: skip
        assert broken in found


def test_long_function_is_found(tmp_path: Path):
    folder = tmp_path / "src"
    folder.mkdir()
    body = "\n".join(f"    x{i} = {i}" for i in range(61))
    (folder / "a.py").write_text(f"def f():\n    '''Doc.'''\n{body}\n")
    warned, failed = load("check_size").sizes(tmp_path)
    assert warned == []
    assert failed == ["src/a.py:f: 61 lines, at most 60"]


def test_value_test_without_source_is_not_counted(tmp_path: Path):
    path = tmp_path / "test_a.py"
    path.write_text("import pytest\n\n@pytest.mark.truth('scipy')\ndef test_a(): ...\n")
    assert load("check_truth").truths(path) == ["scipy"]
    path.write_text("def test_a(): ...\n")
    assert load("check_truth").truths(path) == []
