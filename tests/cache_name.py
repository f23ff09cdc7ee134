"""Name of the argument that takes a cache in the installed version of transformers."""

from transformers import GPT2LMHeadModel

from sonde.tap import cache_argument

CACHE = cache_argument(GPT2LMHeadModel.forward)
