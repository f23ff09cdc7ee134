"""Layers to build into a network: plain torch modules, and functions that put them into a copy."""

from sonde.layers.attention import Attention, non_locality
from sonde.layers.conditional_norm import ConditionalNorm
from sonde.layers.conditions import conditioned
from sonde.layers.cross_attention import DecoupledCrossAttention, drop_sources
from sonde.layers.exchange import Exchange
from sonde.layers.experts import Experts
from sonde.layers.grid_mixer import GridMixer
from sonde.layers.hopfield import (
    Hopfield,
    hebbian_couplings,
    hebbian_recall,
    hopfield_energy,
    keys_for_mass,
)
from sonde.layers.inserting import inserted, inserted_layers, removed
from sonde.layers.latent_loop import LatentLoop
from sonde.layers.layer import Layer, LayerEdit
from sonde.layers.linear_attention import LinearAttention
from sonde.layers.parallel_adapters import Adapter, ParallelAdapters, with_adapters
from sonde.layers.patterns import (
    PATTERNS,
    All,
    Axial,
    Blocks,
    Global,
    Histogram,
    Pattern,
    RandomKeep,
    Stripes,
    Where,
    Window,
    pattern_of,
)
from sonde.layers.readout import Readout
from sonde.layers.reversible import Reversible
from sonde.layers.saving import layer_files, load_layers, save_layers
from sonde.layers.scaled_skip import ScaledSkip
from sonde.layers.second_order import SecondOrder
from sonde.layers.shared_table import SharedTable
from sonde.layers.state_graph import StateGraph, propagate
from sonde.layers.state_queue import StateQueue
from sonde.layers.target_head import TargetHead
from sonde.layers.unit_gate import UnitGate
from sonde.layers.unmix_norm import UnMixNorm, with_unmix_norm
from sonde.layers.vector_quantizer import VectorQuantizer
from sonde.layers.weak_and_strong import WeakAndStrong

__all__ = [
    "PATTERNS",
    "Adapter",
    "All",
    "Attention",
    "Axial",
    "Blocks",
    "ConditionalNorm",
    "DecoupledCrossAttention",
    "Exchange",
    "Experts",
    "Global",
    "GridMixer",
    "Histogram",
    "Hopfield",
    "LatentLoop",
    "Layer",
    "LayerEdit",
    "LinearAttention",
    "ParallelAdapters",
    "Pattern",
    "RandomKeep",
    "Readout",
    "Reversible",
    "ScaledSkip",
    "SecondOrder",
    "SharedTable",
    "StateGraph",
    "StateQueue",
    "Stripes",
    "TargetHead",
    "UnMixNorm",
    "UnitGate",
    "VectorQuantizer",
    "WeakAndStrong",
    "Where",
    "Window",
    "conditioned",
    "drop_sources",
    "hebbian_couplings",
    "hebbian_recall",
    "hopfield_energy",
    "inserted",
    "inserted_layers",
    "keys_for_mass",
    "layer_files",
    "load_layers",
    "non_locality",
    "pattern_of",
    "propagate",
    "removed",
    "save_layers",
    "with_adapters",
    "with_unmix_norm",
]
