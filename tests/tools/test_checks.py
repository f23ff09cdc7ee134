"""The checks of the project's own shape pass, and each can fail."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKS = ("layers", "size", "exports", "truth")


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


def test_upward_import_is_found(tmp_path: Path):
    package = tmp_path / "src" / "sonde"
    (package / "core").mkdir(parents=True)
    source = "def f():\n    from sonde.stats import Moments\n    return Moments\n"
    (package / "core" / "a.py").write_text(source)
    (wrong,) = load("check_layers").violations(package)
    assert wrong.endswith("a.py:2: core may not import stats")


def test_family_may_not_import_its_sister(tmp_path: Path):
    package = tmp_path / "src" / "sonde"
    (package / "detect").mkdir(parents=True)
    (package / "detect" / "a.py").write_text("import sonde.measure\n")
    assert load("check_layers").violations(package) == [
        "src/sonde/detect/a.py:1: detect may not import measure"
    ]


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
    assert load("check_layers").deep_imports(studies, package) == []
    (studies / "a.py").write_text(
        "import sonde.run\nfrom sonde import write\nfrom sonde.detect.knn import knn\n"
        "def f():\n    from sonde.detect import _bank\n    return sonde.detect.shrink(_bank)\n"
    )
    assert load("check_layers").deep_imports(studies, package) == [
        "src/sonde_studies/a.py:1: sonde.run is not public",
        "src/sonde_studies/a.py:2: sonde.write is not public",
        "src/sonde_studies/a.py:3: sonde.detect.knn.knn is not public",
        "src/sonde_studies/a.py:5: sonde.detect._bank is not public",
        "src/sonde_studies/a.py:6: sonde.detect.shrink is not public",
    ]


def test_nothing_of_sonde_imports_the_studies(tmp_path: Path):
    package = tmp_path / "src" / "sonde"
    (package / "cli").mkdir(parents=True)
    (package / "cli" / "a.py").write_text("from sonde_studies import STUDIES\n")
    assert load("check_layers").violations(package) == [
        "src/sonde/cli/a.py:1: cli may not import the studies"
    ]


def test_upward_import_between_rooms_of_run_is_found(tmp_path: Path):
    package = tmp_path / "src" / "sonde"
    (package / "run" / "fitting").mkdir(parents=True)
    source = "import sonde.run.bundles.fitted\nfrom sonde.run.scoring import score\n"
    (package / "run" / "fitting" / "a.py").write_text(source)
    assert load("check_layers").violations(package) == [
        "src/sonde/run/fitting/a.py:2: fitting may not import scoring"
    ]


def test_module_outside_of_the_rooms_is_found(tmp_path: Path):
    package = tmp_path / "src" / "sonde"
    (package / "run").mkdir(parents=True)
    (package / "run" / "__init__.py").write_text("import sonde.core\n")
    (package / "run" / "a.py").write_text("")
    assert load("check_layers").violations(package) == [
        "src/sonde/run/a.py: sonde.run.a has no place in the order"
    ]


def test_circle_of_imports_is_found(tmp_path: Path):
    package = tmp_path / "src" / "sonde"
    (package / "run" / "fitting").mkdir(parents=True)
    first, second = package / "run" / "fitting" / "a.py", package / "run" / "fitting" / "b.py"
    first.write_text("def f():\n    from sonde.run.fitting.b import g\n    return g\n")
    second.write_text("from sonde.run.fitting.a import f\n")
    found = load("check_layers").circle(package)
    assert sorted(set(found)) == ["sonde.run.fitting.a", "sonde.run.fitting.b"]
    assert found[0] == found[-1]
    second.write_text("if TYPE_CHECKING:\n    from sonde.run.fitting.a import f\n")
    assert load("check_layers").circle(package) == []


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
