"""Turn a user's names of models and data into the classes of ``core``.

``load`` gives a ``Model``, ``open_inputs`` gives ``Inputs`` for it, ``open_arrays`` a ``Stream`` of
feature arrays without a model.
"""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
