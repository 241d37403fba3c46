"""Random layers against a plain float64 recursion: what ``tools/fuzz.py`` runs."""
