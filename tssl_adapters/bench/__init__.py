"""``python -m tssl_adapters.bench``: what a gradient is worth, in accuracy and in time."""

import logging

# SpikingJelly offers torch its kernels where there is no Triton, too; torch warns of each, twice.
logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
