"""Training of a reader on passages, and of a retriever on what passages do to the reader."""

import copy
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.train import gain_labels
from sonde_studies._passages import Questions, Reader, Retriever
from sonde_studies.arms import note

FOUND, BATCH, TEMPERATURE, RATE = 8, 128, 0.5, 3e-3
"""Passages that are found for a question; questions of a step; nats; learning rate."""
WITHOUT = 0.2
"""Fraction of the reader's training questions that have no passage."""

Labels = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Of questions (row) and found passages (row, k): labels (row, k) and weights (row)"""


@torch.enable_grad()
def train_reader(reader: Reader, retriever: Retriever, of: Questions, steps: int) -> None:
    """Train on one of the passages that a retriever finds, by lot, or on none."""
    note(rows=len(of.answer))
    optimiser = torch.optim.Adam(reader.parameters(), RATE)
    with torch.no_grad():
        found = retriever(of, torch.arange(len(of.answer))).topk(FOUND).indices
    for _ in range(steps):
        rows = torch.randint(len(found), (BATCH,))
        passages = found[rows, torch.randint(FOUND, (BATCH,))][:, None]
        alone = int(WITHOUT * BATCH)
        losses = (
            reader.losses(of, rows[:alone], None),
            reader.losses(of, rows[alone:], passages[alone:]),
        )
        optimiser.zero_grad()
        torch.cat(losses).mean().backward()
        optimiser.step()


@torch.enable_grad()
def taught_by(
    untaught: Retriever, of: Questions, label: Labels, steps: int, seed: int
) -> Retriever:
    """Return a copy of a retriever, taught on the passages that it finds itself."""
    retriever, source = copy.deepcopy(untaught), torch.Generator().manual_seed(seed)
    moved = [p for p in retriever.parameters() if p.requires_grad]
    note(rows=len(of.answer))
    optimiser = torch.optim.Adam(moved, RATE)
    for _ in range(steps):
        rows = torch.randint(len(of.answer), (BATCH,), generator=source)
        scores, found = retriever(of, rows).topk(FOUND)
        target, weight = label(rows, found)
        optimiser.zero_grad()
        ranking_loss(scores, target, weight).backward()
        optimiser.step()
    return retriever


def ranking_loss(
    scores: Float[Tensor, "row passage"],
    target: Float[Tensor, "row passage"],
    weight: Float[Tensor, "row"],
) -> Float[Tensor, ""]:
    """Return the cross-entropy of a retriever's passages and their labels, weighted by row."""
    loss = -(target * scores.double().log_softmax(1)).sum(1)
    return (weight * loss).sum() / weight.sum().clamp(min=1)


@torch.enable_grad()
def trained_together(
    retriever: Retriever, reader: Reader, of: Questions, steps: int, seed: int, drop: bool = True
) -> tuple[Retriever, Reader]:
    """Return a copy of the retriever and one of the reader, trained together.

    Each step makes one update of the retriever and one of the reader. The retriever learns what
    its passages do to the reader as it then is. The reader learns to read one of these passages,
    drawn at random, or none.

    Parameters
    ----------
    retriever : Retriever
    reader : Reader
    of : Questions
    steps : int
    seed : int
        Draws the questions, and the passages that the reader reads.
    drop : bool, default=True
        Drop passages that harm the reader from the retriever's labels.
    """
    retriever, reader = copy.deepcopy(retriever), copy.deepcopy(reader)
    source = torch.Generator().manual_seed(seed)
    note(rows=len(of.answer))
    finds = torch.optim.Adam([p for p in retriever.parameters() if p.requires_grad], RATE)
    reads = torch.optim.Adam(reader.parameters(), RATE)
    alone = int(WITHOUT * BATCH)
    for _ in range(steps):
        rows = torch.randint(len(of.answer), (BATCH,), generator=source)
        scores, found = retriever(of, rows).topk(FOUND)
        target, weight = gains(reader, of, rows, found, drop)
        finds.zero_grad()
        ranking_loss(scores, target, weight).backward()
        finds.step()
        some = found.gather(1, torch.randint(FOUND, (BATCH, 1), generator=source))
        read = (
            reader.losses(of, rows[:alone], None),
            reader.losses(of, rows[alone:], some[alone:]),
        )
        reads.zero_grad()
        torch.cat(read).mean().backward()
        reads.step()
    return retriever, reader


@torch.no_grad()
def gains(
    reader: Reader,
    of: Questions,
    rows: Int[Tensor, "row"],
    found: Int[Tensor, "row k"],
    drop: bool = True,
) -> tuple[Float[Tensor, "row k"], Float[Tensor, "row"]]:
    """Return labels from what each passage does to the reader's loss, and weights of questions."""
    loss, alone = reader.losses(of, rows, found), reader.losses(of, rows, None).expand_as(found)
    return gain_labels(loss.double(), alone[:, 0].double(), TEMPERATURE, drop)


def shares(
    label: Float[Tensor, "row k"],
) -> tuple[Float[Tensor, "row k"], Float[Tensor, "row"]]:
    """Return labels that sum to one for each question, and 0 for questions without any label."""
    total = label.sum(1, keepdim=True)
    return label / total.clamp(min=1e-12), (total[:, 0] > 0).double()
