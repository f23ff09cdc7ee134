"""How ``sonde.load`` opens ``package.module:factory@FOLDER``, told to it without an import upward.

``sonde._opening`` imports this as soon as ``sonde.data.loading`` is there; nobody calls it.
"""

from pathlib import Path

from torch import nn

import sonde.data.loading as loading


def fill(module: nn.Module, folder: Path) -> None:
    """Put what a folder holds into a module of its factory."""
    from sonde.weights.factory_folder import fill as filled

    filled(module, folder)


loading.FILL.append(fill)
