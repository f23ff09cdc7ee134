"""Build the wheels, install them in a clean environment, and run every command elsewhere.

Without extras, each command works or names the extra. sonde alone says how to install the studies;
after that it lists them.
"""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path, expected: int = 0) -> None:
    """Run a command, and end where its exit code is not the expected one."""
    print("$", " ".join(map(str, command)), flush=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=environment, check=False)
    if done.returncode != expected:
        sys.exit(done.returncode or 1)


def main() -> None:
    """Build, install, scan, fit and score; then try every command."""
    with tempfile.TemporaryDirectory(prefix="sonde-wheel-") as name:
        place = Path(name)
        run(
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "-w",
            place,
            ROOT,
            ROOT / "packages" / "sonde-studies",
            cwd=place,
        )
        (wheel,), (studies,) = place.glob("sonde_torch-*.whl"), place.glob("sonde_studies-*.whl")
        venv.create(place / "env", with_pip=True)
        folder = "Scripts" if os.name == "nt" else "bin"
        pip, sonde = place / "env" / folder / "pip", place / "env" / folder / "sonde"
        run(pip, "install", "--quiet", "-c", ROOT / "constraints.txt", "torch", cwd=place)
        run(pip, "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, cwd=place)
        work = place / "work"
        work.mkdir()
        run(sonde, "scan", "sonde:digits", "sonde:digits/test", "-o", "digits.html", cwd=work)
        run(sonde, "scan", "sonde:stdlib", "sonde:stdlib/test", "-o", "stdlib.html", cwd=work)
        run(sonde, "fit", "mahalanobis", "sonde:digits", "sonde:digits/train", cwd=work)
        run(sonde, "score", "probe.sonde", "sonde:digits", "sonde:digits/test", cwd=work)
        python = place / "env" / folder / "python"
        run(python, "-I", ROOT / "tools" / "every_command.py", cwd=work)
        run(sonde, "study", cwd=work, expected=2)
        run(pip, "install", "--quiet", "-c", ROOT / "constraints.txt", studies, cwd=place)
        run(sonde, "study", cwd=work)
        print(f"the wheel works: {wheel.name}, {wheel.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
