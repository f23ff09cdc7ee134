import pytest
import torch
from torch import nn

from findings._evidence import digits
from findings._nets import assert_clear, assert_raised, checked, evidence_of, tensors
from sonde.findings.codes.snd011 import SND011
from sonde.findings.codes.snd018 import SND018
from sonde.findings.evidence.modules.narrow_sites import is_input


@pytest.mark.slow
def test_the_image_behind_a_flatten_is_the_input_and_no_state() -> None:
    torch.manual_seed(0)
    x = digits()[0][:600].view(-1, 1, 8, 8) * 16
    layer = nn.Linear(64, 16)
    module = nn.Sequential(nn.Flatten(), layer, nn.Tanh(), nn.Flatten()).eval()
    evidence = evidence_of(tensors(module, x))
    assert [is_input(s, evidence) for s in evidence.sites] == [True, False, False, False]
    assert_clear(SND018().check(evidence))
    assert_clear(SND011().check(evidence))
    with torch.no_grad():
        layer.weight[:10] = 0.0
    assert_raised(checked(SND011(), tensors(module, x)), "warning")
