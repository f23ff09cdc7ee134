"""How a plan is driven on one machine: units, workers, progress, and what comes out of it."""
