"""Networks as the libraries' tutorials, examples and zoos build them, each with its own recipe."""
