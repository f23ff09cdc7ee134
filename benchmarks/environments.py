"""Environments of other libraries, which see the project's packages but cannot change them."""

import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.child import ROOT

HOME = ROOT / ".bench"
LIMIT_SECONDS = 600


class PeerError(RuntimeError):
    """A peer's environment is not there and could not be made."""


def python_of(peer: str, offline: bool = False) -> Path:
    """Return the interpreter of a peer's environment, made on first use.

    Raises
    ------
    PeerError
        If it is not there and may not, or could not, be made.
    """
    home = HOME / peer
    python, stamp = home / "bin" / "python", home / ".installed"
    wanted = requirements(peer).read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    if offline:
        raise PeerError(f"{peer} is not installed; run without --offline once")
    # The environment gets its own packages first and sees the project's only afterwards, so that
    # nothing of the project's can be taken for installed, replaced or removed.
    _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(home)])
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    _run([*pip, "-r", str(requirements(peer))])
    _site_packages(home).joinpath("project.pth").write_text(
        f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    )
    stamp.write_text(wanted)
    return python


def requirements(peer: str) -> Path:
    """Return the file that says what a peer needs."""
    return Path(__file__).parent / f"requirements-{peer}.txt"


def peer_version(package: str) -> str:
    """Return a peer's version in the environment that this runs in."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} (unknown version)"


def _site_packages(home: Path) -> Path:
    return next(home.glob("lib/python*/site-packages"))


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT_SECONDS)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no output"]
        raise PeerError(f"{' '.join(command[:4])} ...: {lines[-1]}") from error
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"{' '.join(command[:4])} ...: no end after {LIMIT_SECONDS} s") from error
