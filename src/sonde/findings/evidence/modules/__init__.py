"""What the modules of the model are: flags, weights, parts that never run."""
