"""A fact as a table and as a sentence: how a net of one form represents the other.

Measurements of breast cells, each cut into five grades. Both forms have the same words for columns
and for grades, and as many words. The table names column and grade, in the order of its columns,
with bars between; the sentence names the grade first, in an order of its own, with words that say
nothing between.
"""

from typing import Any, final

import torch
from sklearn.datasets import load_breast_cancer  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde import Model
from sonde_studies.arms import note_again
from sonde_studies.recipes.two_forms_of_a_fact import two_forms_of_a_fact
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy, drawn, minimise

COLUMNS, GRADES, FILLERS, DIM, FIT, STEPS, TINY = 8, 5, 6, 32, 300, 400, 10
LONG = 3
"""Words for each measurement, in either form."""
ARMS = ("table", "prose", "both")


@final
class TwoFormsOfAFactStudy(Study):
    """Three transformers trained on tables, sentences, or both."""

    name = "two-forms-of-a-fact"
    title = "does a net that learned one form of a fact know the other?"
    fidelity = "words of a made language; the papers use questions on real tables and passages"
    data = "569 breast-cell measurements of scikit-learn: 300 to train on, 269 for the recipe"
    place = "tables"
    claims = (
        Claim("drops", "A net that learned tables is worse on sentences.",
              "accuracy on tables less that on sentences",
              arms=("table", "table, read otherwise")),
        Claim("back", "A net that learned sentences is worse on tables.",
              "accuracy on sentences less that on tables",
              arms=("prose", "prose, read otherwise")),
        Claim("mixed", "A net that learned both is as good on either, to five points.",
              "0.05 less the difference of its accuracies",
              arms=("both", "both, read otherwise")),
        Claim("carries", "Its states carry the class from form to form, to five points.",
              "accuracy of a head of the one form on the other less on its own, and 0.05",
              arms=("both", "both, read otherwise")),
        Claim("nearer", "They find facts by the other form more often than those of nets of one.",
              "share found at the last block, both less the mean of one form",
              arms=("both", "table")),
        Claim("late", "They grow alike with depth.",
              "CKA of the forms at the last block less that at the first",
              arms=("both", "both, read otherwise")),
    )  # fmt: skip
    null = Claim("permuted", "Forms of other facts are not found.",
                 "share found at the last block less chance")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train three nets and run the recipe on each."""
        forms, label = _facts(seed)
        order = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))
        forms, label = {k: v[order] for k, v in forms.items()}, label[order]
        rows = _rows(forms["table"][FIT:], forms["prose"][FIT:], label[FIT:])
        right, last = dict[str, dict[str, float]](), dict[str, list[Any]]()
        asked: dict[str, Any] = {
            "forms": ("table", "prose"), "label_column": "kind", "seed": seed, "progress": False,
        }  # fmt: skip
        net = _Net()
        for arm in ARMS:
            tick(arm)
            net = drawn(_Net, seed)
            seen = [forms[arm]] if arm != "both" else [forms["table"], forms["prose"]]

            def loss(chosen: Tensor, net: nn.Module = net, seen: Any = seen) -> Tensor:
                losses = [cross_entropy(net(x[chosen]), label[chosen]) for x in seen]
                return torch.stack(losses).mean()

            minimise(loss, net.parameters(), FIT, steps=TINY if tiny else STEPS, seed=seed)
            note_again(f"{arm}, read otherwise", arm)
            net.eval()
            right[arm] = {f: accuracy(net, x[FIT:], label[FIT:]) for f, x in forms.items()}
            last[arm] = [*two_forms_of_a_fact(Model(net), rows, **asked).rows]
        tick("other facts")
        other = _rows(forms["table"][FIT:], forms["prose"][FIT:].roll(7, 0), label[FIT:])
        lost = two_forms_of_a_fact(Model(net), other, **asked).rows[-1]
        table, prose, both = right["table"], right["prose"], last["both"]
        return {
            "drops": table["table"] - table["prose"],
            "back": prose["prose"] - prose["table"],
            "mixed": 0.05 - abs(right["both"]["table"] - right["both"]["prose"]),
            "carries": both[-1]["other form"] - both[-1]["same form"] + 0.05,
            "nearer": both[-1]["found"]
            - (last["table"][-1]["found"] + last["prose"][-1]["found"]) / 2,
            "late": both[-1]["CKA"] - both[0]["CKA"],
            "permuted": lost["found"] - 1 / len(rows),
            **{f"learned {arm} | accuracy on {form}": v
               for arm, row in right.items() for form, v in row.items()},
            **{f"learned {arm} | {key} at the last block": at[-1][key]
               for arm, at in last.items() for key in ("found", "CKA", "other form")},
        }  # fmt: skip


class _Net(nn.Module):
    """A transformer over words and their positions, with mean pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(COLUMNS + GRADES + FILLERS + 2, DIM)
        self.places = nn.Parameter(torch.randn(LONG * COLUMNS, DIM))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(DIM, 4, 64, 0.0, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(DIM, 2)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def _facts(seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return the words of each fact in both forms, and its class."""
    found: Any = load_breast_cancer()
    x = torch.from_numpy(found.data[:, :COLUMNS]).double()
    grade = (x.argsort(0).argsort(0) * GRADES) // len(x)
    draw = torch.Generator().manual_seed(seed)
    place = torch.rand(grade.shape, generator=draw).argsort(1)
    names, graded = torch.arange(1, 1 + COLUMNS).expand(len(x), -1), 1 + COLUMNS + grade
    bar = torch.full_like(names, 1 + COLUMNS + GRADES + FILLERS)
    table = torch.stack([names, graded, bar], 2).flatten(1)
    filler = torch.randint(FILLERS, grade.shape, generator=draw)
    filler += 1 + COLUMNS + GRADES
    words = [filler, graded.gather(1, place), names.gather(1, place)]
    return {"table": table, "prose": torch.stack(words, 2).flatten(1)}, torch.from_numpy(
        found.target
    )


def _rows(table: Tensor, prose: Tensor, label: Tensor) -> list[dict[str, Any]]:
    columns = zip(table, prose, label, strict=True)
    return [{"table": t, "prose": p, "kind": int(c)} for t, p, c in columns]
