"""The installed package: its version, its names, and that shapes are checked under pytest."""

import importlib
import inspect
import subprocess
import sys
from importlib.metadata import version

import jaxtyping
import pytest
import torch

import sonde
import sonde.core
from sonde.core.wording import DISTRIBUTION
from sonde.run.instruments.listing import listed
from sonde.stats import Moments


def test_version_is_the_installed_one():
    assert sonde.__version__ == version(DISTRIBUTION)


def test_every_public_name_is_there():
    names = dir(sonde)
    assert len(names) <= 67
    for name in names:
        assert getattr(sonde, name) is not None


def test_words_of_the_command_line_are_functions_and_only_public_names_are_shown():
    words = {"drift", "evaluate", "compare", "track", "verify", "export"}
    assert all(inspect.isfunction(getattr(sonde, word)) for word in words)
    for package, least in ((sonde, words), (sonde.core, {"Site"})):
        assert {*dir(package)} == {*vars(package)["__all__"]} >= least


def test_a_function_is_not_hidden_by_its_file_and_names_keep_their_order():
    importlib.import_module("sonde.measure.two_nn")
    assert inspect.isfunction(sonde.measure.two_nn)
    kinds = {"CKNNA": 0, "DCI": 0, "AlignmentQuality": 1, "TwoNN": 1, "cka": 2, "two_nn": 2}
    assert [name for name in sonde.measure.__all__ if name in kinds] == [*kinds]


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = getattr(sonde, "nosuch")  # noqa: B009


def test_import_brings_nothing_heavy():
    heavy = ("torch", "transformers", "scipy")
    code = f"import sonde, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_what_reads_no_state_imports_no_torch():
    listed()  # kept from now on, as after the first call on a machine
    code = """
import sys
from sonde.cli import main
from sonde.cli.commands import COMMANDS
lines = ["--help", "methods", "methods knn", "bogus", "edit --help", "edit steer --nosuch"]
lines += [f"{word} {flag}" for word in COMMANDS for flag in ("--help", "--nosuch")]
for line in lines:
    main(line.split())
    heavy = {"torch", "numpy", "transformers", "scipy", "pyarrow"} & {*sys.modules}
    assert not heavy, (line, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-400:]
    assert "mahalanobis " in done.stdout
    assert "--steps" in done.stdout


def test_a_wrong_shape_is_caught():
    with pytest.raises(jaxtyping.TypeCheckError):
        Moments().observe(torch.zeros(3))
