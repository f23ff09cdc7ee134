"""Parts that recipes share: heads, splits, wording, words of texts, images, code.

Each module serves the recipes that import it, and may be used in recipes of your own.
"""
