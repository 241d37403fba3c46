"""Compiled loops on the CPU: what calls them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from tssl_adapters.engine import numba_filter
from tssl_adapters.engine.kernels import (
    ROWS,
    Adjoints,
    BackForm,
    Given,
    MismatchError,
    Slope,
    Spec,
)
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
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


class Numbers:
    """A neuron's numbers in memory, a row each: ``[8]``, or ``[8, N]`` where neurons differ."""

    def __init__(
        self, values: Sequence[Value], dense: bool, dtype: torch.dtype, step: torch.Size
    ) -> None:
        self.dtype, self.count = dtype, ROWS * (step.numel() if dense else 1)
        if dense:
            rows = [torch.as_tensor(v).detach().to(dtype).expand(step) for v in values]
            self.dense = torch.stack(rows).contiguous()
            self.at = self.dense.data_ptr()
        else:
            self.few = array("f" if dtype == torch.float32 else "d", map(float, values))
            self.at = self.few.buffer_info()[0]

    def address(self, dtype: torch.dtype, count: int) -> int:
        """Where they lie.

        Raises:
            MismatchError: they are not so many values of this dtype.
        """
        if self.dtype is not dtype or self.count != count:
            raise MismatchError(f"{self.count} numbers in {self.dtype}, not {count} in {dtype}")
        return self.at


class NumbaBackend:
    """The CPU's loops, in float32 and float64."""

    name = "numba"

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
        n, dtype = given.neurons, _DTYPES[spec.form.dtype]
        total, size = given.steps * n, -(-n // 8)
        bits = given.drive.new_empty(size, dtype=torch.uint8) if told else None
        over(
            forward(spec, keep, charged is not None), given.steps, n, BLOCK, given.tau_s,
            _at(given.drive, dtype, total), _at(given.state, dtype, n),
            _at(given.trace, dtype, n), _numbers_at(spec, given),
            _own(out), _own(after),
            _own(charged), _own(bits),
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
        n, dtype = given.neurons, _DTYPES[spec.form.dtype]
        total, rows = given.steps * n, 3 if spec.form.timing == "delayed" else 2
        over(
            backward(spec, back), given.steps, n, block,
            given.tau_s, slope.steepest, slope.width, int(given.earlier),
            _at(given.drive, dtype, total), _at(given.state, dtype, n),
            _at(given.trace, dtype, n), _at(kept, torch.uint8, -(-n // 8)),
            _numbers_at(spec, given),
            _at(adjoints.out, dtype, total if adjoints.pace else n), adjoints.pace,
            _at(adjoints.after, dtype, total if adjoints.stride else n), adjoints.stride,
            _at(adjoints.link, dtype, rows * n), _own(adjoints.drive),
            _own(adjoints.chain), _own(adjoints.through), _own(adjoints.trace),
            _own(adjoints.sums),
        )  # fmt: skip

    def current(self, drive: Tensor, start: Tensor, k: float) -> Tensor:
        out, loop = torch.empty_like(drive), numba_filter.forward(_NAMES[drive.dtype])
        steps, n = _size(drive)
        over(
            loop, steps, n, k, _at(drive, drive.dtype, steps * n), _at(start, drive.dtype, n),
            _own(out),
        )  # fmt: skip
        return out

    def current_back(self, grad_out: Tensor, k: float) -> Tensor:
        found, loop = torch.empty_like(grad_out), numba_filter.backward(_NAMES[grad_out.dtype])
        steps, n = _size(grad_out)
        total, dtype = steps * n, grad_out.dtype
        over(loop, steps, n, k, _at(grad_out, dtype, total), _own(found))
        return found


def _at(tensor: Tensor | None, dtype: torch.dtype, count: int) -> int:
    """The address of memory that came in: so many values of a dtype in a row; 0 for none.

    Raises:
        MismatchError: it is something else.
    """
    if tensor is None:
        return 0
    if (
        tensor.dtype is not dtype
        or tensor.numel() != count
        or not tensor.is_contiguous()
        or not tensor.is_cpu
    ):
        raise MismatchError(
            f"{tuple(tensor.shape)} with strides {tensor.stride()} in {tensor.dtype} on "
            f"{tensor.device}, where a loop wants {count} values in {dtype}"
        )
    return tensor.data_ptr()


def _own(tensor: Tensor | None) -> int:
    """The address of memory made for this call, like memory that is checked; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def _numbers_at(spec: Spec, given: Given) -> int:
    numbers: Numbers = given.numbers
    count = ROWS * (given.neurons if spec.form.dense else 1)
    return numbers.address(_DTYPES[spec.form.dtype], count)


def _size(tensor: Tensor) -> tuple[int, int]:
    return tensor.shape[0], tensor[0].numel()
