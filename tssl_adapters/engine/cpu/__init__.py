"""The CPU's loops: generated from a layer's line of operations, compiled by LLVM in memory."""
