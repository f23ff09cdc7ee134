"""``sonde.score``: a table with a line for each row, site and detector, and why a score is high."""
