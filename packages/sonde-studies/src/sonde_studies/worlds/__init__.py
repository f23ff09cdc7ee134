"""Simulated worlds with known ground truth, and nets trained in them.

Trajectories with a known first wrong step, from exact simulators (``build_trajectories``: wrong
actions, detours, and actions after the end), and digits beside a block that says nothing
(``block_digits``). What else studies share is reached through its own file.
"""

from sonde_studies._blocks import BlockDigits, block_digits
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
    "BlockDigits",
    "Built",
    "Calculator",
    "Fault",
    "Grid",
    "Rejected",
    "Step",
    "Trajectory",
    "World",
    "block_digits",
    "build_trajectories",
    "complete",
    "perturb_and_complete",
    "solve",
    "split_of",
    "write_trajectories",
]
