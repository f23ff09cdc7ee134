"""``sonde.score``: score new rows by fitted detectors, a line for each row, site and detector."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sonde.core.errors import InputError, SondeWarning
from sonde.core.reduction import AUTO
from sonde.core.site import Reducer
from sonde.core.stream import Stream
from sonde.engine.progress import Bar
from sonde.run.fitting.fitted import Fitted, as_fitted
from sonde.run.passes.cost import say_cost
from sonde.run.passes.crew import Crew, Runner
from sonde.run.passes.parts import PartJob, has_parts, in_order, shared_by_ranks
from sonde.run.passes.ranks import Ranks
from sonde.run.passes.threads import using_threads
from sonde.run.reading.checking import check_rows
from sonde.run.scoring.batches import ORDER, check_scoring, schema_of_parts, score_batches
from sonde.run.scoring.invariant import invariant_batches
from sonde.run.scoring.needs import check_scoring_memory, needs_of_scoring
from sonde.run.scoring.opening import open_for


def score(
    fitted: Fitted | str | Path,
    model: Any,
    data: Any = None,
    *,
    reduction: str = AUTO,
    explain: int = 0,
    workers: int = 0,
    threads: int | None = None,
    runner: Runner = "local",
    address: str | None = None,
    memory: int | None = None,
    batch_invariant: bool = False,
    progress: bool = True,
    group: Any = None,
    **options: Any,
) -> pa.Table:
    """Score rows, or examples of several rows, with every detector of a bundle.

    Parameters
    ----------
    fitted : Fitted, or the path of a bundle
        Fitted detectors, or the path of their file.
    model : Model, nn.Module, str or Stream
        The model that the bundle was fitted on; or a stream or a store of its states, then without
        ``data``.
    data : str, path or iterable
        What to score.
    reduction : str, default="auto"
        Where an example has several rows: one score of the example (of a long text: of each piece)
        by ``max``, ``mean`` or ``topk_mean(k)``, or each of its ``rows``. "auto" is what the bundle
        was calibrated for.
    explain : int, default=0
        How many of the most unusual layers, units, and tokens or patches each line names.
    workers : int, default=0
        Number of worker processes, or of actors on Ray; 0 works in this process. Plain arrays are
        always scored in this process.
    threads : int, optional
        Number of threads of each worker; by default 1 with workers, else torch's setting.
    runner : {"local", "ray"}, default="local"
        Place of the workers: ``local`` processes, or actors of a ``ray`` cluster.
    address : str, optional
        Address of a running Ray cluster, ``host:port`` or ``auto``; by default a local cluster is
        started.
    memory : int or None, default=None
        Bytes that detectors, rows and the table may take; None is 80 % of the free memory.
    batch_invariant : bool, default=False
        Give each input the numbers that it has alone and in any data, bit for bit, as ``sonde
        serve`` does: batches hold inputs of one length, and small ones are filled up with copies.
        Otherwise the last bits of a score depend on padding and on the size of the batch.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.
    group : ProcessGroup, optional
        Ranks of ``torch.distributed`` that share the work, as ``distributed.group.WORLD`` under
        ``torchrun``. Every rank makes the same call with all of the data and gets the same table;
        rank 0 shows the bar.
    **options
        Named options of ``sonde.read``.

    Returns
    -------
    pyarrow.Table
        Columns ``id row position site instrument score p``: higher score = more unusual; ``p`` is
        the conformal p-value, null where the bundle was not calibrated for this reduction. ``row``
        is the item's number in the data as they lie, from 0 (items that ``skip_bad`` left out
        count, empty lines do not); null for a store to which data were appended. The
        lines of each detector and site stand together, in the order of the data. The ``position``
        of a reduced score is that of its most unusual row. With ``explain``, lists:
        ``layers layer_p``, the sites where the detector finds the row most unusual and the p-values
        there (calibrated detectors at several sites); ``units unit_shares``, the units that add
        most to the score (detectors that can tell); ``positions position_scores``, the most unusual
        tokens or patches of an example with several rows.

    Raises
    ------
    InputError
        If it would not fit into the memory.
    StateError
        If the bundle was fitted for another model, site or reducer, or holds no detector.
    """
    fitted = as_fitted(fitted, "score")
    stream = open_for(fitted, model, data, **options)
    crew = Crew(workers, runner, address, ranks=None if group is None else Ranks(group, "score"))
    progress = progress and crew.is_first
    how: dict[str, Any] = {"reduction": reduction, "explain": explain}
    needed = needs_of_scoring(fitted, stream, workers=crew.workers_here, **how)
    check_scoring_memory(needed, memory)
    check_rows(stream)
    say_cost(stream, shown=progress)
    if batch_invariant and crew.is_apart:
        raise InputError(
            "score: batch_invariant works in this process. Leave --workers out, and group=."
        )
    apart = crew.is_apart and has_parts(stream)
    if apart:
        check_scoring(fitted, stream, explain)
    job = _job(fitted, stream, crew, reduction, explain, threads)

    def scored() -> pa.Table:
        if batch_invariant:
            tables = invariant_batches(fitted, stream, reduction, explain)
        elif apart:
            tables = _from_workers(job, crew)
        else:
            tables = score_batches(fitted, stream, reduction, explain)
        return _joined(tables, fitted, stream, explain, None if apart else threads, progress)

    if not apart:
        return scored()
    names = [list(name) for name in fitted.names]
    return shared_by_ranks(job, crew, [names, fitted.header["units"], reduction, explain], scored)


def _joined(
    tables: Iterator[pa.RecordBatch],
    fitted: Fitted,
    stream: Stream,
    explain: int,
    threads: int | None,
    progress: bool,
) -> pa.Table:
    """Return the tables of batches as one in the order of the data, with a bar meanwhile."""
    batches: list[pa.RecordBatch] = []
    with using_threads(threads), Bar("score", len(stream), progress) as bar:
        for table in tables:
            batches.append(table)
            bar.advance(table.num_rows // max(1, len(fitted.scorers)))
    in_order = in_data_order(
        pa.Table.from_batches(batches, schema=schema_of_parts(explain)), stream
    )
    _say_without_row(in_order, stream)
    return in_order


def in_data_order(table: pa.Table, stream: Stream) -> pa.Table:
    """Return the lines of each detector and site in the order of the data.

    Batches hold rows by length inside a unit. The column of the planned order is dropped.

    Parameters
    ----------
    table : pyarrow.Table
        The tables of batches, see ``score_batches``.
    stream : Stream
        The scored rows.
    """
    planned = table[ORDER].to_numpy()
    item = planned if stream.source_rows is None else stream.source_rows[planned]
    plain = table.drop_columns([ORDER])
    order = np.lexsort((planned, item, _blocks(plain)))  # stable: an example's lines keep theirs
    return plain if (np.diff(order) == 1).all() else plain.take(pa.array(order))


def _blocks(table: pa.Table) -> np.ndarray:
    """Return the number of each line's detector and site, in the order of their first lines."""
    named = [table[name].combine_chunks().dictionary_encode() for name in ("instrument", "site")]
    code = named[0].indices.to_numpy() * max(1, len(named[1].dictionary))
    code = code + named[1].indices.to_numpy()
    _, first, which = np.unique(code, return_index=True, return_inverse=True)
    return first.argsort().argsort()[which]


def _say_without_row(table: pa.Table, stream: Stream) -> None:
    """Warn about items without a line because no site read any of their rows.

    Feature arrays are not checked: their items are rows, and several rows may be an example.
    """
    source = stream.source_rows
    if source is None:
        return
    lost = np.setdiff1d(source, table["row"].drop_null().to_numpy())
    if len(lost) and stream.identity().get("model") is not None:
        warnings.warn(
            f"score: {len(lost):,} of {len(np.unique(source)):,} items get no score; the first "
            f"is item {lost[0]:,}. The scored sites have no rows for them, for example because a "
            "text has a single token (predictions) or only special tokens.",
            SondeWarning,
            stacklevel=5,
        )


def spot(line: dict[str, Any], fitted: Fitted) -> str:
    """Describe which row of its example a line of the table belongs to.

    Empty if an example has one row; for a text in pieces, the position where its piece begins.
    """
    reducers = {s["text"]: Reducer.parse(s["reducer"]) for s in fitted.header["sites"]}
    if not all(reducers[key].one_row for key in line["site"].split(" & ")):
        return f"position {line['position']:,}"
    return f"piece from position {line['position']:,}" if line["position"] else ""


@dataclass(frozen=True)
class ScoreJob(PartJob):
    """Score a part of a stream.

    Parameters
    ----------
    fitted : Fitted
    reduction : str
    explain : int
    """

    fitted: Fitted
    reduction: str
    explain: int

    def of_part(self, part: Stream) -> bytes:
        """Return the table of a part as Arrow bytes."""
        batches = list(score_batches(self.fitted, part, self.reduction, self.explain))
        sink = pa.BufferOutputStream()
        if batches:
            with pa.ipc.new_stream(sink, batches[0].schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
        return sink.getvalue().to_pybytes()


def _job(
    fitted: Fitted,
    stream: Stream,
    crew: Crew,
    reduction: str,
    explain: int,
    threads: int | None,
) -> ScoreJob:
    bounds = tuple(stream.units())
    return ScoreJob(stream, crew.threads(threads), bounds, fitted, reduction, explain)


def _from_workers(job: ScoreJob, crew: Crew) -> Iterator[pa.RecordBatch]:
    """Yield the tables of ``score_batches``, computed by workers, in row order."""
    for content in in_order(job, crew):
        if content:
            with pa.ipc.open_stream(content) as reader:
                yield from reader
