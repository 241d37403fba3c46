"""The CPU loops: generated from a layer's line of operations, compiled by LLVM in memory."""
