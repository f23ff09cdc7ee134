"""A method in a package of its own, announced by an entry point as an installed package has it."""

import numpy as np
import pytest

from sonde import Fitted
from sonde.cli import main
from sonde.core.errors import SondeWarning, StateError
from sonde.run.instruments.catalogue import _announced, methods

CODE = '''
from dataclasses import dataclass
from sonde.core import Instrument, Result
from sonde.stats import Moments

@dataclass(frozen=True)
class LargestShare(Instrument):
    """Share of the variance along the widest direction."""
    power: float = 1.0
    def reads(self):
        return {"moments": Moments()}
    def result(self, moments):
        values = moments.eigenvalues ** self.power
        return Result(value=values[0] / values.sum(), n=moments.n)

class NoMethod:
    pass
'''


@pytest.fixture
def announce(tmp_path, monkeypatch):
    """Put a package with these entry points on the path, as an installer does."""
    (tmp_path / "wide_shares.py").write_text(CODE)
    info = tmp_path / "wide_shares-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wide-shares\nVersion: 1.0\n")

    def with_points(*lines):
        (info / "entry_points.txt").write_text("\n".join(["[sonde.methods]", *lines]))
        monkeypatch.syspath_prepend(tmp_path)
        methods.cache_clear()
        _announced.cache_clear()

    yield with_points
    monkeypatch.undo()
    methods.cache_clear()
    _announced.cache_clear()


def test_a_plug_in_is_listed_fitted_by_word_and_named_in_files(
    announce, tmp_path, capsys, monkeypatch
):
    announce("largest_share = wide_shares:LargestShare")
    rows, probe = tmp_path / "rows.npz", tmp_path / "probe.sonde"
    x = np.random.default_rng(0).standard_normal((300, 3)) * [4.0, 1.0, 1.0]
    np.savez(rows, x=x)
    assert main(["methods", "plug-in"]) == 0
    assert "largest_share" in capsys.readouterr().out
    assert main(["fit", "largest_share(power=2.0)", "-", str(rows), "-o", str(probe)]) == 0
    squared = np.linalg.eigvalsh(np.cov(x.T)) ** 2
    found = Fitted.load(probe).result("largest_share", "x")
    assert float(found) == pytest.approx(squared[-1] / squared.sum(), rel=1e-9)
    monkeypatch.undo()
    methods.cache_clear()
    _announced.cache_clear()
    with pytest.raises(StateError, match="pip install wide-shares"):
        Fitted.load(probe)


@pytest.mark.parametrize(
    ("point", "why"),
    [
        ("msp = wide_shares:LargestShare", "another method has this word"),
        ("share = wide_shares:LargestShare", "its class is called 'largest_share'"),
        ("no_method = wide_shares:NoMethod", "not a subclass"),
        ("gone = wide_shares:Gone", "cannot be imported"),
    ],
)
def test_what_cannot_be_used_is_said_and_left_out(announce, point, why):
    announce(point)
    with pytest.warns(SondeWarning, match=why):
        assert all(m.distribution == "sonde" for m in methods().values())
