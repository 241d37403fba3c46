"""The gradient engine: knows neurons and rules, and no library."""
