"""Worlds whose truth is known, and nets that learn in them.

The names below are of trajectories with a known first wrong step, from exact simulators; what other
studies share is reached through its own file.
"""

from sonde_studies.worlds.building import (
    WORLDS,
    Built,
    build_trajectories,
    split_of,
    write_trajectories,
)
from sonde_studies.worlds.calculator import Calculator
from sonde_studies.worlds.grid import Grid
from sonde_studies.worlds.perturb import KINDS, Rejected, perturb_and_complete
from sonde_studies.worlds.world import Fault, Step, Trajectory, World, complete, solve

__all__ = [
    "KINDS",
    "WORLDS",
    "Built",
    "Calculator",
    "Fault",
    "Grid",
    "Rejected",
    "Step",
    "Trajectory",
    "World",
    "build_trajectories",
    "complete",
    "perturb_and_complete",
    "solve",
    "split_of",
    "write_trajectories",
]
