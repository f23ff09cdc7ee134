"""Rules for the next token, run inside the ``generate`` of a live model."""
