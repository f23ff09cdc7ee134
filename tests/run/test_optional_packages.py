"""Optional packages that are missing, and those that are installed but cannot be imported."""

import sys
from importlib.abc import MetaPathFinder

import pytest

from sonde.compress._range_coder import _stream
from sonde.core.errors import InputError
from sonde.data.audio_encoding import _soundfile
from sonde.run.passes._cluster import import_ray
from sonde.run.training.loggers import open_logger
from sonde.run.training.low_rank import _peft
from sonde.run.watching.metrics import PrometheusMetrics
from sonde.store.exporting.to_lance import lance_module

IMPORTS = {
    "constriction": lambda: _stream("codec"),
    "soundfile": _soundfile,
    "ray": import_ray,
    "peft": _peft,
    "prometheus_client": PrometheusMetrics,
    "lance": lance_module,
    "mlflow": lambda: open_logger("mlflow:one"),
}


class Broken(MetaPathFinder):
    """A finder whose package exists, and lacks a shared library."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        """Raise as an extension module does."""
        if name == self.package:
            raise ImportError("libx.so.1: cannot open shared object file")


@pytest.mark.parametrize("package", IMPORTS)
def test_the_reason_of_a_failed_import_is_named(monkeypatch, package):
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(package), *sys.meta_path])
    with pytest.raises(InputError, match=r"cannot be imported \(libx.so.1: .*pip install"):
        IMPORTS[package]()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"cannot be imported \(.*{package}.*pip install"):
        IMPORTS[package]()
