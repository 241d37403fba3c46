"""The GPU's kernels: a step of a layer generated from its line of operations, Triton around it."""
