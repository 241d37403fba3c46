"""``python -m tssl_adapters.bench``: compare gradients in accuracy and speed."""

import logging

# SpikingJelly registers its kernels with torch even without Triton; torch warns twice for each.
logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
