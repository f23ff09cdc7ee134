"""Layers to build into a network: plain torch modules, and functions that put them into a copy."""

from sonde.layers.cross_attention import DecoupledCrossAttention, drop_sources
from sonde.layers.inserting import inserted, inserted_layers, removed
from sonde.layers.layer import Layer, LayerEdit
from sonde.layers.parallel_adapters import Adapter, ParallelAdapters, with_adapters
from sonde.layers.saving import load_layers, save_layers
from sonde.layers.unmix_norm import UnMixNorm, with_unmix_norm

__all__ = [
    "Adapter",
    "DecoupledCrossAttention",
    "Layer",
    "LayerEdit",
    "ParallelAdapters",
    "UnMixNorm",
    "drop_sources",
    "inserted",
    "inserted_layers",
    "load_layers",
    "removed",
    "save_layers",
    "with_adapters",
    "with_unmix_norm",
]
