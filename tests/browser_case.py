"""Sizes of the screens on which pages are looked at."""

SIZES = {"phone": (390, 844), "desk": (1280, 900)}
