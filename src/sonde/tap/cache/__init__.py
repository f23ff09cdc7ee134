"""Key-value caches that drop tokens; only this package touches the caches of transformers."""
