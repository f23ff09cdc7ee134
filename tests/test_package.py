"""The installed package says the version that its metadata says."""

from importlib.metadata import version

import sonde


def test_version_is_the_installed_one():
    assert sonde.__version__ == version("sonde")
