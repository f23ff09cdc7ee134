"""What ``sonde.load`` does with folders of rooms above it, told to it without an import upward.

``sonde._opening`` imports this as soon as ``sonde.data.loading`` is there; nobody calls it.
"""

from pathlib import Path

from torch import nn

import sonde.data.loading as loading
from sonde.core.inputs import Model


def fill(module: nn.Module, folder: Path) -> None:
    """Put what a folder holds into a module of its factory."""
    from sonde.weights.factory_folder import fill as filled

    filled(module, folder)


def insert(model: Model, folder: Path) -> Model:
    """Put the layers that a folder holds into its model."""
    from sonde.layers.saving import with_saved_layers

    return with_saved_layers(model, folder)


loading.FILL.append(fill)
loading.INSERT.append(insert)
