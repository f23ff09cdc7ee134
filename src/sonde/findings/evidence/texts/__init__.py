"""How texts are written, and how a language model predicts them."""
