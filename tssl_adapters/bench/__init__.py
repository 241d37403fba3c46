"""``python -m tssl_adapters.bench``: what a gradient is worth, in accuracy and in time."""
