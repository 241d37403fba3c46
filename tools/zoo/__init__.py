"""The models that the libraries bring or teach, and a check of each against its native twin."""
