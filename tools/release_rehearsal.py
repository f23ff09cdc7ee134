"""Rehearse the first upload: ``python tools/release_rehearsal.py dist [PYTHON ...]``.

Starts an empty package index on the loopback, uploads the files of a folder with twine and a token,
and installs ``sonde-torch`` from this index into an empty environment of each interpreter. There it
checks that pip fetched the uploaded bytes, and runs a scan. The other packages come from the index
that pip is configured for. Writes a CycloneDX list of what was installed beside the files.
"""

import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("pypiserver==2.4.2", "twine>=6.2", "cyclonedx-bom>=7")
NAME = "sonde-torch"


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a command and return what it prints; end with its output if it fails."""
    print("$", " ".join(map(str, command)), flush=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env=environment | variables,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{done.stdout[-4000:]}\nexit code {done.returncode}")
    return done.stdout


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(url: str) -> None:
    """Return when an address answers; raise after a minute."""
    for _ in range(240):
        try:
            urllib.request.urlopen(url).close()
        except urllib.error.URLError:
            time.sleep(0.25)
        else:
            return
    raise TimeoutError(url)


def install(python: Path, index: str, wheel: Path, place: Path) -> None:
    """Install from the index into an empty environment of an interpreter, and use it."""
    version = run(python, "-c", "import sys; print(*sys.version_info[:2], sep='.')", cwd=place)
    home = place / f"env-{version.strip()}"
    stem = wheel.name.removesuffix("-py3-none-any.whl")
    bom = wheel.with_name(f"{stem}-python{version.strip()}.cdx.json")
    run(python, "-m", "venv", home, cwd=place)
    env = home / "bin"
    pip: tuple[str | Path, ...] = (env / "pip", "--disable-pip-version-check")
    run(*pip, "install", "-q", "-c", ROOT / "constraints.txt", "torch", cwd=place)
    run(
        *pip,
        "download",
        "-q",
        "--no-deps",
        "--index-url",
        index,
        "-d",
        home / "got",
        NAME,
        cwd=place,
    )
    (got,) = (home / "got").iterdir()
    if hashlib.sha256(got.read_bytes()).digest() != hashlib.sha256(wheel.read_bytes()).digest():
        sys.exit(f"{got.name}: expected the uploaded bytes, got others")
    run(*pip, "install", "-q", "--extra-index-url", index, NAME, cwd=place)
    print(run(env / "sonde", "--version", cwd=place).strip())
    run(env / "sonde", "scan", "sonde:digits", "sonde:digits/test", "-o", "page.html", cwd=place)
    run(
        place / "tools" / "bin" / "cyclonedx-py",
        "environment",
        "-o",
        bom,
        env / "python",
        cwd=place,
    )
    print(f"Python {version.strip()}: installed from the index, scanned; {bom.name}", flush=True)


def main() -> None:
    """Upload to an index of one's own, and install from it with every interpreter."""
    folder = Path(sys.argv[1]).resolve()
    pythons = [Path(word) for word in sys.argv[2:]] or [Path(sys.executable)]
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with tempfile.TemporaryDirectory(prefix="sonde-release-") as name:
        place = Path(name)
        venv.create(place / "tools", with_pip=True)
        run(place / "tools" / "bin" / "pip", "install", "-q", *TOOLS, cwd=place)
        (place / "packages").mkdir()
        port = free_port()
        index = f"http://127.0.0.1:{port}/"
        command = [place / "tools" / "bin" / "pypi-server", "run", "-i", "127.0.0.1", "-p", port]
        command += ["-P", ".", "-a", ".", "--disable-fallback", place / "packages"]
        server = subprocess.Popen([str(c) for c in command], stderr=subprocess.DEVNULL)
        try:
            wait_for(index)
            token = {"TWINE_USERNAME": "__token__", "TWINE_PASSWORD": "pypi-rehearsal"}
            upload = (place / "tools" / "bin" / "twine", "upload", "--repository-url", index)
            run(*upload, wheel, archive, cwd=place, **token)
            for python in pythons:
                install(python, f"{index}simple/", wheel, place)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
