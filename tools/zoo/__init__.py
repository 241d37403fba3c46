"""Models from the libraries and their tutorials, and a check of each against its native twin."""
