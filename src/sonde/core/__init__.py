"""The nouns that everything else plugs into. Nothing in here imports upward."""
