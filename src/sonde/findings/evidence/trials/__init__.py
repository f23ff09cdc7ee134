"""Changes of inputs, parts and answers, tried on a few rows, and what they restore."""
