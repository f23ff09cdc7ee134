"""Test whether a reader's loss teaches a retriever which passages to find.

Planted passages of reliable and unreliable sources; questions use other words for relations than
passages do, so an untaught retriever finds the subject and little else. The reader is trained on
passages by lot and then fixed; its loss with a passage less its loss without one is all that the
taught retriever learns from.
"""

from typing import final

import torch
from torch import Tensor

from sonde_studies._passages import Reader, Retriever, questions_and_passages
from sonde_studies._taught_retriever import Labels, gains, shares, taught_by, train_reader
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick

SUBJECTS, TINY = (300, 150), (20, 10)
READING, TEACHING = 1500, 300


@final
class ReaderFeedbackStudy(Study):
    """Answers to new questions from the first passage, by what the retriever was taught with."""

    name = "reader-feedback"
    title = "does a reader's loss teach a retriever which passages help?"
    paper = "guo2022unifer"
    fidelity = (
        "the reader's gain by a passage as the retriever's label and harmful passages dropped, as "
        "the abstract says; weights of the labels are ours; words in place of pictures and "
        "questions; the reader is trained first and then fixed, not jointly; planted passages"
    )
    data = "8 passages each on 450 subjects by 6 sources, of which 3 are mostly wrong; planted"
    claims = (
        Claim(
            "taught",
            "Taught by the reader's loss, a retriever answers more than an untaught one.",
            "accuracy on new subjects, taught less untaught",
            arms=("teach: reader, harmful dropped", "untaught"),
        ),
        Claim(
            "distant",
            "A retriever taught by the reader's loss answers more than one taught by which "
            "passages contain the answer.",
            "accuracy on new subjects, difference",
            arms=("teach: reader, harmful dropped", "teach: holds the answer"),
        ),
        Claim(
            "dropped",
            "Dropping the passages that harm the reader answers more than keeping them.",
            "accuracy on new subjects, dropped less kept",
            arms=("teach: reader, harmful dropped", "teach: reader, all kept"),
        ),
    )
    null = Claim(
        "no weight",
        "Taught with no weight on any question, a retriever answers as an untaught one does.",
        "accuracy on new subjects, taught with no weight less untaught",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a reader, teach copies of one retriever, and read the first passage of each."""
        sizes = TINY if tiny else SUBJECTS
        known, new = questions_and_passages(seed, sizes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            untaught, reader = Retriever(sum(sizes)), Reader()
            tick("train the reader")
            train_reader(reader, untaught, known, 20 if tiny else READING)
        labels: dict[str, Labels] = {
            "reader, harmful dropped": lambda rows, found: gains(reader, known, rows, found),
            "reader, all kept": lambda rows, found: gains(reader, known, rows, found, drop=False),
            "holds the answer": lambda rows, found: shares(
                (known.value[found] == known.answer[rows, None]).double()
            ),
            "helpful passages": lambda rows, found: shares(known.helpful(rows, found)),
            "no weight": lambda rows, found: weighed(gains(reader, known, rows, found), 0.0),
        }
        note_for("untaught", updates=0)
        taught = {"untaught": untaught}
        for name, label in labels.items():
            tick(f"teach: {name}")
            taught[name] = taught_by(untaught, known, label, 5 if tiny else TEACHING, seed)
        grid, right = dict[str, float](), dict[str, float]()
        for name, retriever in taught.items():
            first = retriever(new, new.answerable).argmax(1)
            said = reader(new, new.answerable, first).argmax(1)
            right[name] = float((said == new.answer[new.answerable]).double().mean())
            grid[f"{name} | accuracy"] = right[name]
            helpful = new.helpful(new.answerable, first[:, None])
            grid[f"{name} | first passage helps"] = float(helpful.mean())
        best = right["reader, harmful dropped"]
        return {
            "taught": best - right["untaught"],
            "distant": best - right["holds the answer"],
            "dropped": best - right["reader, all kept"],
            "no weight": right["no weight"] - right["untaught"],
            **grid,
        }


def weighed(label: tuple[Tensor, Tensor], weight: float) -> tuple[Tensor, Tensor]:
    """Return labels with another weight on their questions."""
    return label[0], weight * label[1]
