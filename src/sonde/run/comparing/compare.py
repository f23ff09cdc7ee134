"""Compare two models layer by layer on the same inputs."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from sonde.core.inputs import Model
from sonde.core.renaming import renamed
from sonde.run.comparing.two_models import RowSample, TwoModels, compare_models
from sonde.run.fitting.fit import fit
from sonde.run.passes.crew import Runner
from sonde.run.reading.read import read


@renamed("running")
def compare(
    model: Model | nn.Module,
    other: Model | nn.Module,
    data: Any,
    *,
    other_sites: str | Sequence[str] | None = None,
    workers: int = 0,
    threads: int | None = None,
    runner: Runner = "local",
    address: str | None = None,
    memory: int | None = None,
    progress: bool = True,
    **options: Any,
) -> TwoModels:
    """Compare the states of two models on the same data.

    Parameters
    ----------
    model : Model or nn.Module
        First model.
    other : Model or nn.Module
        Second model, whose states are compared with those of the first.
    data : anything that ``sonde.read`` takes
        Inputs, as ``sonde.read`` takes them: a path, a data set's name, or an iterable of inputs.
    other_sites : pattern or several, optional
        Sites of ``other``; by default those of ``model``.
    workers : int, default=0
        Number of processes that share the work; 0 works in this process.
    threads : int, optional
        Threads of each process; by default the cores divided by the processes.
    runner : {"local", "ray"}, default="local"
        Where the processes run.
    address : str, optional
        Address of a running Ray cluster, ``host:port`` or ``auto``; by default a local cluster is
        started.
    memory : int, optional
        Limit in bytes; a run that is expected to need more is refused.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.
    **options
        Options of ``sonde.read`` for both models, such as ``sites`` and ``reducer``.

    Raises
    ------
    InputError
        If fewer than 16 rows are in both.
    """
    there = options if other_sites is None else {**options, "sites": other_sites}
    fits = [
        fit(
            RowSample(),
            read(one, data, **how),
            workers=workers,
            threads=threads,
            runner=runner,
            address=address,
            memory=memory,
            progress=progress,
        )
        for one, how in ((model, options), (other, there))
    ]
    return compare_models(fits[0], fits[1], progress=progress)
