"""Key-value caches that evict: the only place that touches the caches of transformers."""
