"""Register how ``sonde.load`` opens folders of higher layers, without importing them.

``sonde._opening`` imports this as soon as ``sonde.data.loading`` is there; nobody calls it.
"""

from pathlib import Path

from torch import nn

import sonde.data.loading as loading


def fill(module: nn.Module, folder: Path) -> None:
    """Put what a folder holds into a module of its factory."""
    from sonde.weights.factory_folder import fill as filled

    filled(module, folder)
    insert(module, folder)


def insert(module: nn.Module, folder: Path) -> None:
    """Put the layers that a folder holds into its model, if transformers has not done so."""
    from sonde.layers.saving import insert_saved_layers

    insert_saved_layers(module, folder)


loading.FILL.append(fill)
loading.INSERT.append(insert)
