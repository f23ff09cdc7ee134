"""Settings of a scan other than the model, the data and the reading."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from sonde.core.errors import InputError
from sonde.core.instrument import Detector, Instrument
from sonde.core.plan import UNIT_SIZE
from sonde.core.ranges import check_ranges
from sonde.findings.catalogue import check_code, rules
from sonde.findings.rule import Rule
from sonde.run.instruments.words import instruments_of
from sonde.run.passes.crew import Crew, Runner


@dataclass(frozen=True)
class ScanSettings:
    """Settings of a scan and of its report, imported from ``sonde.report``.

    ``sonde.scan`` takes each of them by name as well: ``sonde.scan(model, data, only="SND034")``.

    Parameters
    ----------
    unit_size : int, default=256
        Examples in a unit.
    workers : int, default=0
        Processes, or actors on Ray.
    threads : int or None, default=None
        Threads of each worker; part of the plan.
    runner : {"local", "ray"}, default="local"
        "ray" works on a cluster.
    address : str or None, default=None
        The cluster; None starts one on this machine.
    memory : int or None, default=None
        Bytes that the states may take.
    directory : Path or None, default=None
        Run directory.
    fresh : bool, default=False
        Drop what another plan left in the run directory.
    progress : bool, default=True
        Whether a bar shows the progress of the pass.
    error_bars : bool, default=True
        Compute standard errors.
    stochastic : bool, default=False
        The model draws random numbers by design.
    deep : bool, default=False
        Compute also what takes a gradient or more forwards, and the measures of ``measures.DEEP``.
    measures : tuple of Instrument or str, default=()
        What is measured at every site beside the checks; words as in ``sonde.fit``.
    alpha : float, default=0.01
        False-alarm rate of the detectors against OTHER.
    detectors : tuple of Detector or str, default=()
        Detectors that are fitted on half of DATA and score OTHER, each at every site whose rows it
        reads; words as in ``sonde.fit``. Empty stands for k nearest neighbours, Mahalanobis, and
        the energy of logits.
    only, ignore : tuples of str
        Codes to keep; codes to silence, as ``CODE`` or ``CODE@site pattern``.
    thresholds : mapping of code to mapping of name to value
        Thresholds that the user moved.
    show_inputs, hash_ids : bool
        Whether reports may hold inputs, and whether ids are hashed.
    reference : Path or None, default=None
        Healthy answers to the same rows, with the columns id and answer, such as the file that
        ``sonde scan --rows`` wrote of an earlier version.
    fail_on : tuple of str
        Levels or codes that the user gates on.
    command : str
        What was typed.
    """

    unit_size: int = UNIT_SIZE
    workers: int = 0
    threads: int | None = None
    runner: Runner = "local"
    address: str | None = None
    memory: int | None = None
    directory: Path | None = None
    fresh: bool = False
    progress: bool = True
    error_bars: bool = True
    stochastic: bool = False
    deep: bool = False
    measures: tuple[Instrument | str, ...] = ()
    alpha: float = 0.01
    detectors: tuple[Instrument | str, ...] = ()
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    thresholds: Mapping[str, Mapping[str, int | float]] = field(default_factory=dict)
    show_inputs: bool = False
    hash_ids: bool = False
    reference: Path | None = None
    fail_on: tuple[str, ...] = ()
    command: str = ""

    def __post_init__(self) -> None:
        check_ranges(self, alpha="(0, 1)", workers=">= 0", threads=">= 1", memory="> 0")
        self.rules()
        self.chosen_detectors()

    def rules(self) -> list[Rule]:
        """Return the rules to run, with the thresholds that the user changed.

        Raises
        ------
        InputError
            If a code or a threshold does not exist.
        """
        every = rules(self.thresholds)
        for entry in self.ignore:
            check_code(entry.partition("@")[0])
        only = {check_code(code) for code in self.only}
        return [rule for rule in every if not only or rule.code in only]

    def chosen_detectors(self) -> tuple[Detector, ...]:
        """Return the detectors that were asked for; words are parsed.

        Raises
        ------
        InputError
            If a word does not exist, or a method is no detector.
        """
        methods = instruments_of(self.detectors)
        for method in methods:
            if not isinstance(method, Detector):
                is_class = isinstance(method, type)
                name = f"the class {method.__name__}" if is_class else type(method).__name__
                raise InputError(
                    f"scan: expected detectors, got {name}. `sonde methods` lists them."
                )
        return tuple(methods)

    def changed(self, **values: Any) -> "ScanSettings":
        """Return these settings with some of them replaced.

        Parameters
        ----------
        **values
            New values by name. One word or method stands for a tuple of one, and a list for a
            tuple.

        Raises
        ------
        InputError
            If ``only`` is empty.

        Examples
        --------
        >>> ScanSettings().changed(only="SND034").only
        ('SND034',)
        """
        tuples = {one.name for one in fields(self) if isinstance(one.default, tuple)}
        for name in tuples & values.keys():
            value = values[name]
            is_one = isinstance(value, str | Instrument)
            values[name] = (value,) if is_one else tuple(value)
        if values.get("only") == ():
            raise InputError("scan: only= names no code. Leave it out to run every check.")
        if isinstance(values.get("reference"), str):
            values["reference"] = Path(values["reference"])
        return replace(self, **values)

    @property
    def crew(self) -> Crew:
        """The workers that share the pass: how many, where they run and how they are reached."""
        return Crew(self.workers, self.runner, self.address)
