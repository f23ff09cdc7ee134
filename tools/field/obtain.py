"""``python -m tools.field.obtain``: real data, from Debian's packages without installing them.

Pictures, sounds and texts lie under ``.field/debian`` then. What cannot be had is named, and the
subjects that need it are left out of the table.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FIELD = ROOT / ".field"
DEBIAN = FIELD / "debian"
LISTED = Path(__file__).parent / "debian.txt"


def package(name: str) -> Path:
    """Return the folder of an installed package without importing it."""
    return Path(sysconfig.get_paths()["purelib"]) / name


def share_packages(inner: Path, outer: Path) -> None:
    """Let the environment `inner` import what `outer` has, its editable installs too.

    Parameters
    ----------
    inner, outer : Path
        Roots of two virtual environments of the same Python.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = outer.resolve() / "lib" / version / "site-packages"
    shared = inner / "lib" / version / "site-packages" / "zz_shared.pth"
    shared.write_text(f"import site; site.addsitedir({str(packages)!r})\n", "utf-8")


def unpack(name: str, place: Path) -> bool:
    """Fetch a Debian package and unpack it; return whether that worked."""
    done = place / f".{name}"
    if done.exists():
        return True
    fetched = place / f"fetched-{name}"
    shutil.rmtree(fetched, ignore_errors=True)
    fetched.mkdir(parents=True)
    try:
        command = ["apt-get", "download", "-qq", name]
        subprocess.run(command, cwd=fetched, check=True, capture_output=True)
        archive = next(fetched.glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive, place], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError, StopIteration):
        return False
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
    done.touch()
    return True


def main() -> int:
    """Unpack every listed package; return 0 even if some are missing, for other subjects run."""
    share_packages(FIELD / "venv", ROOT / ".venv")
    for line in LISTED.read_text("utf-8").splitlines():
        name = line.partition("#")[0].strip()
        if name and not unpack(name, DEBIAN):
            print(f"{name} cannot be fetched here (apt-get update first?)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
