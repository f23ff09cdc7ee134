"""A function of one text as processor, over files and lists, with texts of unequal length."""

import csv
import json

import pytest
import torch
from torch import nn

from sonde.core.errors import InputError
from sonde.data.loading import load
from sonde.run.reading.read import read

WORDS = ["alpha", "beta", "gamma", "delta", "eps", "zeta"]
TEXTS = ["beta", "alpha gamma", "zeta eps delta beta", "gamma", "eps eps alpha", "delta zeta"]


class Words(nn.Module):
    """Return the mean embedding of the real words, then a curve of it."""

    def __init__(self):
        super().__init__()
        self.table, self.hidden = nn.Embedding(7, 5), nn.Linear(5, 3)

    def forward(self, input_ids, attention_mask):
        real = attention_mask[..., None].float()
        return self.hidden((self.table(input_ids) * real).sum(1) / real.sum(1)).tanh()


def ids_of(text, batch):
    ids = torch.tensor([WORDS.index(word) + 1 for word in text.split()])
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {name: x[None] for name, x in found.items()} if batch else found


def written(kind, folder):
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(TEXTS)]
    path = folder / f"texts.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"])
            writer.writeheader()
            writer.writerows(rows)
    return {"list": TEXTS, "rows": rows}.get(kind, path)


@pytest.mark.truth("the module on one text alone, in plain torch")
@pytest.mark.parametrize("batch", [False, True], ids=["item", "batch-of-one"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "list", "rows"])
def test_every_text_gives_what_it_gives_alone(kind, batch, tmp_path):
    torch.manual_seed(1)
    net = Words().eval()
    model = load(net, processor=lambda text: ids_of(text, batch))
    stream = read(model, written(kind, tmp_path), sites="hidden", batch_size=4)
    found = {}
    for part in stream:
        found.update(zip(part.order.tolist(), part.rows["hidden:out"], strict=True))
    with torch.no_grad():
        for i, text in enumerate(TEXTS):
            alone = ids_of(text, batch=True)
            mean = net.table(alone["input_ids"]).mean(1)
            torch.testing.assert_close(found[i], net.hidden(mean)[0])


def test_looking_at_the_first_rows_keeps_the_index_of_a_file(tmp_path):
    from sonde.data.tables import JsonLines

    source = JsonLines(written("jsonl", tmp_path), skip_bad=False)
    whole = list(source.rows())
    next(source.rows())
    assert source.take(2, 6) == whole[2:6]
    assert source.place(5) == "line 6"


@pytest.mark.parametrize("kind", ["jsonl", "list"])
def test_a_processor_that_fails_is_named_with_the_text_and_how_it_is_called(kind, tmp_path):
    model = load(Words().eval(), processor=lambda texts: ids_of(texts[99], batch=False))
    with pytest.raises(InputError, match="IndexError: string index out of range") as caught:
        list(read(model, written(kind, tmp_path), sites="hidden"))
    assert "called with one text at a time" in str(caught.value)
    whole = load(Words().eval(), processor=lambda text: ids_of(text, batch=False))
    bad = [*written("rows", tmp_path)[:3], {"text": "unheard", "label": 0}]
    rows = [part.order.tolist() for part in read(whole, bad, sites="hidden", skip_bad=True)]
    assert sorted(i for some in rows for i in some) == [0, 1, 2]
