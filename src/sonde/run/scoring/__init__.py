"""``sonde.score``: a table with a line for each row, site and detector; why a score is high."""
