"""A bundle that names what this version does not know says what to do."""

import pytest
import torch

from sonde.core import StateError
from sonde.core.stream import Stream
from sonde.files.state_file import read_header, read_state, state_type, write_state
from sonde.measure import Covariance
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"instrument": "spread"}, r"no method is called 'spread'"),
        ({"params": {"gone": 1}}, r"gone"),
        ({"digest": "0"}, r"different parameters in this version.*Fit it again"),
    ],
)
def test_what_to_do_is_said(tmp_path, change, said):
    path, rows = tmp_path / "a.sonde", torch.randn(40, 3)
    fitted = fit(Covariance(), Stream.of(rows), progress=False)
    fitted.save(path)
    types = {i: state_type(r.statistic) for i, r in fitted.requests.items()}
    header, states = read_header(path), read_state(path, types)[1]
    entries = [{**header["entries"][0], **change}]
    write_state(path, {**header, "entries": entries}, states)
    with pytest.raises(StateError, match=said) as told:
        Fitted.load(path)
    assert "Fit it again" in str(told.value)
    if "digest" not in change:
        assert "Fitted.load(path, [Class])" in str(told.value)
