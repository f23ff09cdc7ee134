"""Trajectories with a known first wrong step, from worlds with exact simulators."""

from sonde.data.trajectories.building import (
    WORLDS,
    Built,
    build_trajectories,
    split_of,
    write_trajectories,
)
from sonde.data.trajectories.calculator import Calculator
from sonde.data.trajectories.grid import Grid
from sonde.data.trajectories.perturb import KINDS, Rejected, perturb_and_complete
from sonde.data.trajectories.world import Fault, Step, Trajectory, World, complete, solve

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
