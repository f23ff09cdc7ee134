"""Who works on ranges of units: this process, processes beside it, or actors on Ray."""
