"""Runs in the environments of River and Evidently: the row of their first alarm.

They watch the columns of the streams of ``tools.figures changes``, which writes them to a file.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.environments import peer_version

DELTA = 0.002
"""River's default for ADWIN, divided among the columns."""
ROWS = 500
"""Rows of one report of Evidently."""
FirstAlarm = Callable[[np.ndarray], int | None]


def first_alarms(peer: str, path: str, most: int) -> dict[str, Any]:
    """Return the peer's version, and for each change the row of the first alarm in each stream.

    Parameters
    ----------
    peer : str
    path : str
        File of arrays: ``reference``, and the streams of each change.
    most : int
        Streams of each change.
    """
    with np.load(path) as held:
        found = PEERS[peer](held["reference"])
        names = [name for name in held.files if name != "reference"]
        alarms = {name: [found(stream) for stream in held[name][:most]] for name in names}
    return {"version": peer_version(peer), "alarms": alarms}


def _river(reference: np.ndarray) -> FirstAlarm:
    from river.drift import ADWIN  # pyright: ignore[reportMissingImports]

    def first(stream: np.ndarray) -> int | None:
        detectors = [ADWIN(delta=DELTA / stream.shape[1]) for _ in range(stream.shape[1])]
        for i, row in enumerate(stream.tolist()):
            for detector, value in zip(detectors, row, strict=True):
                detector.update(value)
            if any(detector.drift_detected for detector in detectors):
                return i
        return None

    return first


def _evidently(reference: np.ndarray) -> FirstAlarm:
    import pandas as pd
    from evidently import (  # pyright: ignore[reportMissingImports]
        DataDefinition,
        Dataset,
        Report,
    )
    from evidently.presets import DataDriftPreset  # pyright: ignore[reportMissingImports]

    names = [f"c{i}" for i in range(reference.shape[1])]
    definition = DataDefinition(numerical_columns=names)

    def of(rows: np.ndarray) -> Any:
        return Dataset.from_pandas(pd.DataFrame(rows, columns=names), data_definition=definition)

    known = of(reference)

    def first(stream: np.ndarray) -> int | None:
        for start in range(0, len(stream), ROWS):
            report = Report([DataDriftPreset()]).run(
                current_data=of(stream[start : start + ROWS]), reference_data=known
            )
            if report.dict()["metrics"][0]["value"]["count"] > 0:
                return min(start + ROWS, len(stream)) - 1
        return None

    return first


PEERS: dict[str, Callable[[np.ndarray], FirstAlarm]] = {
    "river": _river,
    "evidently": _evidently,
}
