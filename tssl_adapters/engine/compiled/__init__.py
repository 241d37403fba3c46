"""Compiled loops: what they may be called with, the check before their first use, and the calls."""
