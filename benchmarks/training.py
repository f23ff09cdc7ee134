"""What a record over the steps of a training costs, as a share of the training.

One record is timed beside steps of training in the same rounds; the share is that of one record
for every 200 steps.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.nets import VOCABULARY, _config
from benchmarks.protocol import spread_of
from benchmarks.rows import Row
from benchmarks.size import Size

BUDGET = 0.03
EVERY, PROBE_ROWS, TRAIN_ROWS, LENGTH = 200, 256, 16, 64
STEPS_TIMED = 4


def training_share(size: Size) -> list[Row]:
    """Time of one record of two instruments at all blocks over that of 200 steps of training."""
    depth, width = size.pick((6, 512), (2, 64))
    rows, steps = size.pick((PROBE_ROWS, STEPS_TIMED), (16, 1))
    model, step = _training(depth, width)
    with tempfile.TemporaryDirectory() as folder:
        record = _recorder(Path(folder) / "run.track", rows)
        step()
        record(model, 0)
        shares, again = [], []
        for turn in range(size.rounds):
            first, taken = _seconds(step, steps), _seconds(lambda n=turn: record(model, n + 1), 1)
            second = _seconds(step, steps)
            shares.append(taken / (EVERY * (first + second) / (2 * steps)))
            again.append(second / first)
    middle = sorted(shares)[len(shares) // 2]
    return [
        Row(
            "train",
            f"record of {rows} texts of {LENGTH} at {depth} blocks of {width}, a share of "
            f"{EVERY} steps with {TRAIN_ROWS}",
            middle,
            budget=BUDGET,
            spread=middle * spread_of(again),
            rounds=size.rounds,
            note=f"steps again {min(again):.3f}-{max(again):.3f}",
        )
    ]


def _seconds(work: Any, times: int) -> float:
    began = time.process_time()
    for _ in range(times):
        work()
    return time.process_time() - began


def _training(depth: int, width: int) -> tuple[torch.nn.Module, Any]:
    from transformers import GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(_config(depth, width)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        ids = torch.randint(VOCABULARY, (TRAIN_ROWS, LENGTH), generator=generator)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, step


def _recorder(folder: Path, n: int) -> Any:
    from sonde.measure import Covariance, ParticipationRatio
    from sonde.run.training.callback import Recorder

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCABULARY, (n, LENGTH), generator=generator)
    probe = [{"input_ids": row.tolist()} for row in ids]
    instruments = [Covariance(), ParticipationRatio()]
    return Recorder(instruments, probe, folder, sites="blocks", reducer="mean").record
