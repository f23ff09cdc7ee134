"""Judge tables of scores by what is known about their rows."""
