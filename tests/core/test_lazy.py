"""Packages whose names are imported late."""

import importlib
import re
import sys

import pytest

PACKAGE = """from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__{options})
"""


@pytest.mark.parametrize(
    ("options", "said"),
    [('extra="serve"', "pip install 'sonde-torch[serve]'"), ("", "No module named 'not_there'")],
)
def test_a_package_names_the_extra_that_is_missing(tmp_path, monkeypatch, options, said):
    folder = tmp_path / f"late_{len(options)}"
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE.format(options=f", {options}" if options else ""))
    (folder / "__init__.pyi").write_text(f"from {folder.name}.inside import run as run\n")
    (folder / "inside.py").write_text("import not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module(folder.name)
    assert package.__all__ == ["run"]
    with pytest.raises(ImportError, match=re.escape(said)):
        package.run  # noqa: B018
    del sys.modules[folder.name]
