"""The GPU kernels: a layer's step, generated from its line of operations, inside Triton kernels."""
