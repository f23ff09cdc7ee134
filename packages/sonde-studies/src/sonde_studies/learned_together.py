"""Test whether a retriever and a reader learn more together than the reader first.

Planted passages as in ``reader-feedback``. The retriever learns what its passages do to the reader;
the reader learns to read what the retriever finds.
"""

from copy import deepcopy
from dataclasses import replace
from typing import final

import torch

from sonde_studies._passages import VALUES, Questions, Reader, Retriever, questions_and_passages
from sonde_studies._taught_retriever import gains, taught_by, train_reader, trained_together
from sonde_studies.arms import note_again
from sonde_studies.study import Claim, Figures, Study, Tick

SUBJECTS, TINY = (300, 150), (20, 10)
STEPS = 400
RIGHT = "accuracy on new subjects"


@final
class LearnedTogetherStudy(Study):
    """A retriever and a reader in one run, or the reader first and then fixed."""

    name = "learned-together"
    title = "do a retriever and a reader learn more together than one after the other?"
    paper = "guo2022unifer"
    fidelity = (
        "labels of the retriever are the reader's gains, harmful passages dropped, as the abstract "
        "says; words in place of pictures and questions; both start untrained; planted passages"
    )
    data = "8 passages each on 450 subjects by 6 sources, of which 3 are mostly wrong; planted"
    seconds = 12.0
    claims = (
        Claim("together", "Trained together, they answer more than a retriever that is taught by a "
              "reader that was trained first, at equal updates of each.",
              f"{RIGHT}, together less reader first", arms=("together", "reader first")),
        Claim("dropped", "Dropping passages that harm the reader answers more than keeping them.",
              f"{RIGHT}, together, dropped less kept", arms=("together", "all kept")),
        Claim("taught", "They answer more than a reader that had as many updates, with half as "
              "many updates in all because its retriever is untaught.",
              f"{RIGHT}, together less untaught retriever", arms=("together", "reader alone")),
    )  # fmt: skip
    null = Claim("by lot", "Answers that are dealt by lot are not told of new subjects.",
                 f"{RIGHT}, less that of chance")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train both together and one after the other, and ask about new subjects."""
        sizes, steps = (TINY, 5) if tiny else (SUBJECTS, STEPS)
        known, new = questions_and_passages(seed, sizes)
        retriever, reader = untrained(seed, sum(sizes))
        pairs = dict[str, tuple[Retriever, Reader]]()
        for name in ("together", "all kept"):
            tick(name)
            drop = name == "together"
            pairs[name] = trained_together(retriever, reader, known, steps, seed, drop)
        tick("reader alone")
        first = deepcopy(reader)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            train_reader(first, retriever, known, steps)
        pairs["reader alone"] = retriever, first
        tick("reader first")
        note_again("reader first", of="reader alone")
        taught = taught_by(
            retriever, known, lambda rows, found: gains(first, known, rows, found), steps, seed
        )
        pairs["reader first"] = taught, first
        tick("by lot")
        lots = [dealt(of, seed + i) for i, of in enumerate((known, new))]
        null = trained_together(retriever, reader, lots[0], steps, seed)
        right = {name: answered(*pair, new) for name, pair in pairs.items()}
        return {
            "together": right["together"] - right["reader first"],
            "dropped": right["together"] - right["all kept"],
            "taught": right["together"] - right["reader alone"],
            "by lot": answered(*null, lots[1]) - 1 / VALUES,
            **{f"accuracy | {name}": value for name, value in right.items()},
            **{f"first passage helps | {name}": helped(pair[0], new)
               for name, pair in pairs.items()},
        }  # fmt: skip


def untrained(seed: int, subjects: int) -> tuple[Retriever, Reader]:
    """Return a retriever and a reader from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Retriever(subjects), Reader()


def dealt(of: Questions, seed: int) -> Questions:
    """Return the questions with answers by lot; passages know nothing of these answers."""
    draw = torch.Generator().manual_seed(seed)
    return replace(of, answer=torch.randint(VALUES, of.answer.shape, generator=draw))


@torch.no_grad()
def answered(retriever: Retriever, reader: Reader, of: Questions) -> float:
    """Return the share of answerable questions that are answered from the first passage."""
    rows = of.answerable
    said = reader(of, rows, retriever(of, rows).argmax(1)).argmax(1)
    return float((said == of.answer[rows]).double().mean())


@torch.no_grad()
def helped(retriever: Retriever, of: Questions) -> float:
    """Return the share of answerable questions whose first passage is about them and right."""
    first = retriever(of, of.answerable).argmax(1)
    return float(of.helpful(of.answerable, first[:, None]).mean())
