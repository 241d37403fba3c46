"""What :func:`tssl_adapters.compare` records, restores and reports."""
