"""Compiled loops on the CPU: what calls them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from tssl_adapters.engine import numba_filter
from tssl_adapters.engine.kernels import Adjoints, BackForm, Given, Slope, Spec
from tssl_adapters.engine.numba_kernels import backward, forward
from tssl_adapters.engine.threads import over
from tssl_adapters.neuron import Value

BLOCK = 1024
"""Neurons that the forward pass holds at once."""
SCRATCH = 2**17
"""Values of a block that the backward pass holds at once: they stay in the second cache, and of a
thousand steps there are neurons enough side by side. A quarter of it took 1.3 times as long, at
T = 1000 2.3 times."""
_NAMES = {torch.float32: "float32", torch.float64: "float64"}


class Numbers:
    """A neuron's numbers in memory, a row each: ``[8]``, or ``[8, N]`` where neurons differ."""

    def __init__(
        self, values: Sequence[Value], dense: bool, dtype: torch.dtype, step: torch.Size
    ) -> None:
        if dense:
            rows = [torch.as_tensor(v).detach().to(dtype).expand(step) for v in values]
            self.dense = torch.stack(rows).contiguous()
            self.at = self.dense.data_ptr()
        else:
            self.few = array("f" if dtype == torch.float32 else "d", map(float, values))
            self.at = self.few.buffer_info()[0]


class NumbaBackend:
    """The CPU's loops, in float32 and float64."""

    def takes(self, drive: Tensor) -> bool:
        return drive.device.type == "cpu" and drive.dtype in _NAMES

    def numbers(
        self, values: Sequence[Value], dense: bool, drive: Tensor, step: torch.Size
    ) -> Numbers:
        return Numbers(values, dense, drive.dtype, step)

    def forward(
        self,
        spec: Spec,
        given: Given,
        out: Tensor,
        after: Tensor,
        charged: Tensor | None,
        keep: bool,
        again: bool,
    ) -> Tensor | None:
        told = charged is not None and spec.form.psc
        size = -(-given.neurons // 8)
        bits = given.drive.new_empty(size, dtype=torch.uint8) if told else None
        over(
            forward(spec, keep, charged is not None), given.steps, given.neurons, BLOCK,
            given.tau_s,
            _at(given.drive), _at(given.state), _at(given.trace), given.numbers.at,
            _at(out), _at(after), _at(charged), _at(bits),
        )  # fmt: skip
        return bits

    def backward(
        self,
        spec: Spec,
        back: BackForm,
        slope: Slope,
        given: Given,
        kept: Tensor | None,
        adjoints: Adjoints,
    ) -> None:
        block = max(16, min(BLOCK, SCRATCH // (given.steps + 1)))
        over(
            backward(spec, back), given.steps, given.neurons, block,
            given.tau_s, slope.steepest, slope.width, int(given.earlier),
            _at(given.drive), _at(given.state), _at(given.trace), _at(kept), given.numbers.at,
            _at(adjoints.out), adjoints.pace, _at(adjoints.after), adjoints.stride,
            _at(adjoints.link), _at(adjoints.drive), _at(adjoints.chain), _at(adjoints.through),
            _at(adjoints.trace), _at(adjoints.sums),
        )  # fmt: skip

    def current(self, drive: Tensor, start: Tensor, k: float) -> Tensor:
        out, loop = torch.empty_like(drive), numba_filter.forward(_NAMES[drive.dtype])
        over(loop, *_size(drive), k, drive.data_ptr(), start.data_ptr(), out.data_ptr())
        return out

    def current_back(self, grad_out: Tensor, k: float) -> Tensor:
        found, loop = torch.empty_like(grad_out), numba_filter.backward(_NAMES[grad_out.dtype])
        over(loop, *_size(grad_out), k, grad_out.data_ptr(), found.data_ptr())
        return found


def _at(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _size(tensor: Tensor) -> tuple[int, int]:
    return tensor.shape[0], tensor[0].numel()
