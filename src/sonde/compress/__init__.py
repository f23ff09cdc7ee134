"""Compress a model's weights, its key-value cache, gradients, and texts that it predicts.

``GPTQ().plan(model, {"calibration": texts}).fold(model)`` packs the weights of linear layers.
``with sonde.caching(model, SnapKV(budget=0.25)) as cache:`` opens a cache by one of the rules here.
``SequenceCoder(model).encode(ids)`` writes a text in the bits that the model needs to guess it.
"""

from sonde.core._lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__)
