"""One time step: its mathematics (recursion), and how it is written down as lines of operations."""
