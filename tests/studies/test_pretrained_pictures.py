"""The pretrained net of pictures: its shapes and padding, and the pictures that stand in."""

import math

import pytest
import torch
from torch.nn.functional import conv2d, pad

from sonde import InputError
from sonde_studies import costarr_pretrained
from sonde_studies._lite0 import LAST, Lite0, _Same, named_as_here
from sonde_studies._pretrained_pictures import lite0


def test_the_net_has_the_published_number_of_parameters():
    """4.652 million: the published table of EfficientNet-lite says 4.7."""
    with torch.device("meta"):
        net = Lite0()
        assert net(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
        assert net.last(net.blocks(net.stem(torch.empty(1, 3, 96, 96)))).shape == (1, LAST, 3, 3)
    assert sum(p.numel() for p in net.parameters()) == 4_652_008


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("side", [6, 12, 48])
def test_padding_at_stride_two_is_that_of_tensorflow(kernel, side):
    draw = torch.Generator().manual_seed(kernel + side)
    x = torch.randn(2, 1, side, side, generator=draw)
    weight = torch.randn(1, 1, kernel, kernel, generator=draw)
    total = max((math.ceil(side / 2) - 1) * 2 + kernel - side, 0)
    ends = (total // 2, total - total // 2) * 2
    wanted = conv2d(pad(x, ends), weight, stride=2)
    torch.testing.assert_close(conv2d(_Same(kernel)(x), weight, stride=2), wanted)


def test_weights_of_another_net_are_refused():
    published = {f"p{i}": w for i, w in enumerate(Lite0().state_dict().values())}
    assert list(named_as_here(published)) == list(Lite0().state_dict())
    with pytest.raises(ValueError, match=r"expected head\.bias of shape \(1000,\), got \(7,\)"):
        named_as_here(published | {f"p{len(published) - 1}": torch.zeros(7)})


def test_a_study_without_its_weights_names_the_command(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    study = costarr_pretrained.COSTARRPretrainedStudy()
    lite0.cache_clear()
    with pytest.raises(InputError, match="Run `make places` in the repository first"):
        lite0(False)
    assert study.place == "efficientnet"
