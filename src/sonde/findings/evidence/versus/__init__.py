"""DATA against OTHER."""
