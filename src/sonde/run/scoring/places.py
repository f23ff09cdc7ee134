"""Check that images have as many patches as those a detector was fitted on."""

from collections.abc import Mapping

import torch

from sonde.core.batch import Batch
from sonde.core.errors import InputError
from sonde.core.result import Scorer
from sonde.engine.requests import Task
from sonde.run.instruments.entries import Key
from sonde.stats import CalibratedScorer


def check_places(batch: Batch, tasks: Mapping[Key, Task], scorers: Mapping[Key, Scorer]) -> None:
    """Raise if the number of positions differs from that in the fitted images.

    Only detectors that compare position by position are asked. Rows are not checked if their
    image is unknown.

    Raises
    ------
    InputError
        Naming an image.
    """
    for name, scorer in scorers.items():
        fitted = scorer.scorer if isinstance(scorer, CalibratedScorer) else scorer
        key = tasks[name].keys[0]
        wanted = fitted.n_places
        if wanted is None or key not in batch.grid:
            continue
        counts = torch.bincount(batch.example[key], minlength=len(batch))
        wrong = torch.nonzero(counts != wanted).flatten().tolist()
        if wrong:
            raise InputError(
                f"{name[0]}: expected {wanted} patches of every image (as fitted), got "
                f"{int(counts[wrong[0]])} of {batch.ids[wrong[0]]} at {key}. Give images of the "
                "fitted size."
            )
