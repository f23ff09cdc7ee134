"""A model that looks rows up, one that knows nothing, and losses computed by hand."""

import pytest
import torch
from torch import nn

from sonde import InputError, Model, load
from sonde_studies.recipes.did_it_memorise import did_it_memorise, losses_of


class ByHeart(nn.Module):
    """Knows the labels of some rows, which it finds by their first number; guesses the others."""

    def __init__(self, keys, label):
        super().__init__()
        self.keys, self.label = nn.Buffer(keys), nn.Buffer(label)

    def forward(self, x):
        same = (x[:, :1] == self.keys).float()
        known = same @ nn.functional.one_hot(self.label, 3).float()
        return 4.0 * known - 0.3 * torch.tanh(x[:, 1:4])


def rows(n, seed):
    draw = torch.Generator().manual_seed(seed)
    x, label = torch.randn(n, 4, generator=draw), torch.randint(0, 3, (n,), generator=draw)
    return x, label, [{"x": a, "label": int(c)} for a, c in zip(x, label, strict=True)]


@pytest.mark.truth("which rows the model knows by heart")
def test_rows_that_are_known_by_heart_are_found():
    x, label, seen = rows(130, 1)
    _, _, held = rows(170, 2)
    model = Model(ByHeart(x[:, 0], label).eval())
    found = did_it_memorise(model, seen, held, progress=False)
    assert found.verdict == "memorised"
    assert float(found.value) == pytest.approx(1.0, abs=0.01)
    assert "finds 100.0% of them" in found.sentence
    blind = Model(ByHeart(torch.full((130,), 99.0), label).eval())
    found = did_it_memorise(blind, seen, held, progress=False)
    assert found.verdict == "not seen"
    assert found.level == "clear"
    assert found.sentence.startswith("No row is shown to be exposed.")
    assert not any("exposed" in row["what"] for row in found.rows)


@pytest.mark.truth("AUROC counted pair by pair, of losses computed by hand")
def test_a_reference_takes_away_what_is_easy_for_all():
    x, label, seen = rows(60, 3)
    y, other, held = rows(80, 4)
    torch.manual_seed(5)
    nets = [nn.Linear(4, 3) for _ in range(2)]
    found = did_it_memorise(
        Model(nets[0].eval()), seen, held, reference=Model(nets[1].eval()), progress=False
    )
    with torch.no_grad():
        one, two = (
            nn.functional.cross_entropy(nets[0](a), c, reduction="none")
            - nn.functional.cross_entropy(nets[1](a), c, reduction="none")
            for a, c in ((x, label), (y, other))
        )
    assert float(found.value) == pytest.approx(float((one[:, None] < two).float().mean()), abs=1e-4)


@pytest.mark.truth("cross entropy of the next byte, by torch")
def test_the_loss_of_a_text_is_the_mean_over_its_tokens():
    model, text = load("sonde:stdlib"), "import os\nimport re\n"
    ids = torch.tensor([list(text.encode())])
    with torch.no_grad():
        want = nn.functional.cross_entropy(model.module(ids).logits[0, :-1], ids[0, 1:])
    (got,) = losses_of(model, [{"text": text}], False, None)
    assert float(got) == pytest.approx(float(want), rel=1e-4)


@pytest.mark.truth("rows that are each there once: a group has the interval of its mean row")
@pytest.mark.parametrize("column", ["id", "group"])
def test_rows_of_one_id_or_group_count_as_one(column):
    torch.manual_seed(11)
    model = Model(nn.Linear(4, 3).eval())
    sides = [
        [row | {column: f"{name}{i}"} for i, row in enumerate(rows(n, seed)[2])]
        for name, n, seed in (("a", 40, 6), ("b", 50, 7))
    ]
    near = [[row | {"x": row["x"] + k * 1e-4} for row in part for k in range(4)] for part in sides]
    once, often = (did_it_memorise(model, *parts, progress=False) for parts in (sides, near))
    ends = [{k: found.rows[0][k] for k in ("low", "high")} for found in (once, often)]
    assert ends[0] == pytest.approx(ends[1], abs=0.01)


def test_rows_without_labels_are_refused():
    _, _, seen = rows(40, 1)
    bare = [{"x": row["x"]} for row in seen]
    with pytest.raises(InputError, match="40 of them without a label"):
        did_it_memorise(Model(nn.Linear(4, 3).eval()), bare, bare, progress=False)
