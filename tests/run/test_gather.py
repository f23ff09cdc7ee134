"""Rows of a stream in memory: every item once, in the order of the data."""

import pytest
import torch
from torch import nn

from sonde import InputError, Model, gather, read


@pytest.mark.truth("the module called by hand on each row")
def test_rows_come_in_the_order_of_the_data():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(613, 5, generator=draw)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).eval()
    items = [{"x": row, "label": i % 3} for i, row in enumerate(x)]
    found = gather(read(Model(net), items, sites="1", batch_size=37, logits=True), progress=False)
    with torch.no_grad():
        torch.testing.assert_close(found.rows["1:out"], torch.tanh(net[0](x)))
        torch.testing.assert_close(found.logits, net(x))
    assert found.label.tolist() == [i % 3 for i in range(613)]
    assert found.item.tolist() == list(range(613))


@pytest.mark.slow
@pytest.mark.truth("the lengths of the texts")
def test_texts_of_different_lengths_keep_their_order():
    texts = [{"text": "ab" * n} for n in (9, 3, 200, 1, 7)]
    found = gather(read("sonde:stdlib", texts, reducer="mean", check=False), progress=False)
    assert found.item.tolist() == [0, 1, 2, 2, 3, 4]
    assert found.length is not None
    assert found.length.tolist() == [18, 6, 256, 144, 2, 14]


@pytest.mark.slow
@pytest.mark.truth("the mean over the bytes of a text, read token by token")
def test_pieces_of_a_long_text_count_by_their_length():
    texts = [{"text": "ab" * 200}, {"text": "xyz"}]
    options = {"sites": "blocks", "check": False}
    found = gather(read("sonde:stdlib", texts, reducer="mean", **options), progress=False)
    tokens = [batch for batch in read("sonde:stdlib", texts, reducer="tokens", **options)]
    key = [*found.rows][-1]
    of_text = [torch.cat([b.rows[key][found.item[b.order[b.example[key]]] == i] for b in tokens])
               for i in range(2)]  # fmt: skip
    expected = torch.stack([x.double().mean(0) for x in of_text])
    torch.testing.assert_close(found.pooled(found.last), expected, rtol=1e-5, atol=1e-5)


def test_several_rows_of_an_example_are_refused():
    stream = read("sonde:stdlib", [{"text": "abc"}], reducer="tokens", check=False)
    with pytest.raises(InputError, match=r"expected one row for each example.*reducer='mean'"):
        gather(stream)
