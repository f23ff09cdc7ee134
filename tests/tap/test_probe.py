"""What probe forwards find out where another size of the inputs changes more than sizes."""

import pytest
import torch
from torch import Tensor, nn

from models import VOCABULARY
from sonde.core.inputs import Model
from sonde.tap import Tap, live_stream
from tap_inputs import Arrays, images


class Viewed(nn.Module):
    """A convolution and two linear layers; a larger image becomes several rows in between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(2 * 64, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(self.conv(x).view(-1, 2 * 64)).relu())


@pytest.mark.truth("the model's own outputs")
def test_an_image_that_becomes_several_rows_when_it_is_larger_is_read_at_its_own_size():
    torch.manual_seed(0)
    net, inputs = Viewed().eval(), images(8, channels=1, keyword=None)
    stream = live_stream(Model(net), inputs)
    assert {s.key: s.axes for s in stream.schema} == {
        "conv:out": "row dim h w", "fc1:out": "row dim", "fc2:out": "row dim"
    }  # fmt: skip
    with torch.no_grad():
        assert torch.equal(next(stream.batches(0, 4)).rows["fc2:out"], net(inputs.x[:4]))


class Steps(nn.Module):
    """An embedding of width 32, a recurrent layer of width 64, a head at the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 32)
        self.lstm = nn.LSTM(32, 64, batch_first=True)
        self.fc = nn.Linear(64, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.lstm(self.embedding(ids.long()))[0][:, -1])


@pytest.mark.truth("a tap, averaged over the steps")
@pytest.mark.parametrize("length", [32, 64])
def test_a_length_that_equals_a_width_hides_no_layer(length):
    torch.manual_seed(0)
    net, ids = Steps().eval(), torch.randint(VOCABULARY, (4, length)).float()
    stream = live_stream(Model(net), Arrays(ids))
    assert [(s.key, s.dim) for s in stream.schema] == [
        ("embedding:out", 32), ("lstm:out", 64), ("fc:out", 5)
    ]  # fmt: skip
    with Tap(net, ["embedding", "lstm"]) as tap:
        net(ids)
    rows = next(stream.batches(0, 4)).rows
    for site, raw in tap.rows.items():
        torch.testing.assert_close(rows[site], raw.mean(1))
