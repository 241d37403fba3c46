"""What :func:`tssl_adapters.compare` sees, keeps and says."""
