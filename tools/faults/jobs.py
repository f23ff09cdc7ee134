"""The runs that faults are tried on, and what each of them gives undisturbed."""

import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tools.faults.commands import POLL_SECONDS, SONDE, Commands, Ended, Running
from tools.faults.counting import digest

NETS = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, {width}), nn.ReLU()).eval()
"""
NARROW, WIDE = "0 1", "2 3"


class BenchError(RuntimeError):
    """The bench itself cannot go on."""


@dataclass(frozen=True)
class Sizes:
    """How many examples the runs read, and the units of the widest layer."""

    fit: int
    read: int
    merge: int
    width: int


@dataclass(frozen=True)
class Job:
    """A command, and what it writes into the folder where it runs.

    Parameters
    ----------
    name : str
        What was typed, without its files.
    words : tuple of str
    output : str
        The file or folder that it writes.
    sign : str
        What shows that the work has begun: a path that appears, or with ``<`` a file it opens.
    n_rows : int
        Examples in the finished output.
    before : Path or None
        A folder with what must be there already.
    """

    name: str
    words: tuple[str, ...]
    output: str
    sign: str
    n_rows: int
    before: Path | None = None

    def place(self, folder: Path) -> Path:
        """Make a folder to run in."""
        if self.before is None:
            folder.mkdir(parents=True)
        else:
            linked(self.before, folder)
        return folder

    def has_begun(self, running: Running, folder: Path) -> bool:
        """Return whether the sign is there that the command works."""
        if self.sign.startswith("<"):
            return running.has_open(self.sign[1:])
        return (folder / self.sign).exists()


@dataclass(frozen=True)
class Undisturbed:
    """What a job gives without faults, and the part of its process time in which it works."""

    folder: Path
    digest: dict[str, str]
    begins: float
    ends: float


@dataclass(frozen=True)
class Bench:
    """The jobs by name, where their data lie, and how they are run."""

    top: Path
    commands: Commands
    sizes: Sizes
    jobs: dict[str, Job]

    def forked(self) -> "Bench":
        """Return the bench with commands that spare the imports."""
        return replace(self, commands=replace(self.commands, forked=True))

    @property
    def sound(self) -> Commands:
        """Commands of the sonde that is not broken."""
        return replace(self.commands, program=SONDE)

    @property
    def source(self) -> Path:
        """The folder of data and model."""
        return self.commands.source


def linked(source: Path, target: Path) -> None:
    """Copy a folder without its bytes: sonde replaces files, it never writes into them."""
    shutil.copytree(source, target, copy_function=os.link)


def prepare(top: Path, sizes: Sizes, commands: Commands) -> Bench:
    """Write data and model, fit what is to be merged, and return the jobs."""
    source = commands.source
    source.mkdir(parents=True)
    (source / "nets.py").write_text(NETS.format(width=sizes.width))
    rng = np.random.default_rng(5)
    needed = {"fit": sizes.fit, "read": sizes.read, "left": sizes.merge, "right": sizes.merge // 2}
    for name, n in {**needed, "more": sizes.read // 2}.items():
        np.savez(source / f"{name}.npz", x=rng.standard_normal((n, 16)).astype("f4"))
    np.savez(source / "scan.npz", a=rng.standard_normal((400, 8)).astype("f4"))
    bench = Bench(top, commands, sizes, {job.name: job for job in _jobs(source, sizes)})
    for name in ("left", "right"):
        words = fit_words(source / f"{name}.npz", f"{name}.sonde", sites=WIDE, unit_size=512)
        ended = bench.forked().sound.run(words, source)
        if ended.code:
            raise BenchError(f"{' '.join(words)}: {ended.said}")
    return bench


def fit_words(
    data: Path, output: str, *further: str, sites: str = NARROW, unit_size: int = 64
) -> tuple[str, ...]:
    """Return a ``sonde fit`` of this data."""
    words = f"fit mahalanobis,knn,covariance nets:make {data} -o {output} --sites {sites}"
    return (*words.split(), "--unit-size", str(unit_size), *further)


def read_words(data: Path, *further: str, sites: str = WIDE) -> tuple[str, ...]:
    """Return a ``sonde read`` of this data."""
    words = f"read nets:make {data} -o acts --sites {sites} --unit-size 64"
    return (*words.split(), *further)


def _jobs(source: Path, sizes: Sizes) -> list[Job]:
    fit, read, more = source / "fit.npz", source / "read.npz", source / "more.npz"
    pair = (str(source / "left.sonde"), str(source / "right.sonde"))
    both, plan = ("--workers", "2"), "a.run/plan.json"
    n_merged = sizes.merge + sizes.merge // 2
    return [
        Job("fit", fit_words(fit, "a.sonde"), "a.sonde", plan, sizes.fit),
        Job("fit --workers 2", fit_words(fit, "a.sonde", *both), "a.sonde", plan, sizes.fit),
        Job("read", read_words(read), "acts", "acts/store.json", sizes.read),
        Job("read --workers 2", read_words(read, *both), "acts", "acts/store.json", sizes.read),
        Job(
            "read --append",
            read_words(more, "--append"),
            "acts",
            "acts/data/1/store.json",
            sizes.read + sizes.read // 2,
            source / "read",
        ),
        Job(
            "read --add-sites",
            read_words(read, "--add-sites", sites=f"{NARROW} {WIDE}"),
            "acts",
            "acts/sites/1/store.json",
            sizes.read,
            source / "read",
        ),
        Job("merge", ("merge", *pair, "-o", "m.sonde"), "m.sonde", "<left.sonde", n_merged),
    ]


def undisturbed(bench: Bench, job: Job, folder: Path) -> Undisturbed:
    """Run a job to its end, and note when it begins to work and when it ends."""
    job.place(folder)
    begins = ends = -1.0
    with bench.sound.start(job.words, folder) as running:
        while not running.is_over():
            ends = max(ends, running.cpu_seconds())
            if begins < 0 and job.has_begun(running, folder):
                begins = ends
            time.sleep(POLL_SECONDS)
        ended = running.end()
    if ended.code:
        raise BenchError(f"{' '.join(job.words)}: {ended.said}")
    if job.name == "read" and not (bench.source / "read").exists():
        linked(folder, bench.source / "read")
    found = digest(folder / job.output)
    return Undisturbed(folder, found, begins if begins >= 0 else 0.6 * ends, ends)


def finish(bench: Bench, job: Job, folder: Path, *further: str) -> Ended:
    """Run the same command again, to its end."""
    return bench.commands.run((*job.words, *further), folder)
