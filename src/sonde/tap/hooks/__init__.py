"""A module's insides: hooks that come off again, outputs and caches of any form, names."""
