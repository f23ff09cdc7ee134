"""What recipes are made of beside sonde: heads, splits, wording, words of texts, pictures, code.

Each module serves the recipes that import it, and may be used in recipes of your own.
"""
