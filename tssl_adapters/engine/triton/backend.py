"""The Triton backend: launches the kernels on the GPU.

Under Triton's interpreter (``TRITON_INTERPRET=1``) they take CPU tensors instead, which is how they
are tested.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from tssl_adapters.arithmetic import Line, Symbol
from tssl_adapters.engine.call.pins import channels_last, is_memory
from tssl_adapters.engine.call.plan import working_dtype
from tssl_adapters.engine.compiled.kernels import (
    BITS,
    LINKS,
    Adjoints,
    Gate,
    Given,
    MismatchError,
    RowLoop,
    Variant,
)
from tssl_adapters.engine.step.spec import Spec, link_rows
from tssl_adapters.engine.triton import emit
from tssl_adapters.engine.triton.kernels import backward, forward, scan
from tssl_adapters.neuron import Value

LONGEST_SPAN = 8
"""Time steps that a program holds at once. The backward pass recomputes one such span at a time, so
the forward pass stores a state for each span but the first: an eighth of a drive."""
THREADS = 128
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class TritonBackend:
    """The Triton backend, in float16, bfloat16, float32 and float64."""

    name, joins = "triton", False

    @property
    def ways(self) -> tuple[TritonBackend, ...]:
        return (self,)

    def takes(self, drive: Tensor) -> bool:
        device = "cpu" if emit.interpreted() else "cuda"
        return drive.device.type == device and drive.dtype in _DTYPES

    def numbers(
        self, values: Sequence[Value], dense: bool, drive: Tensor, step: torch.Size
    ) -> Tensor:
        """``[8]`` or ``[8, *step]``. No synchronisation: what is on the GPU stays there."""
        dtype, device = working_dtype(drive), drive.device
        if dense:
            rows = [torch.as_tensor(v, dtype=dtype, device=device).detach() for v in values]
            return torch.stack([row.expand(step) for row in rows]).contiguous()
        row = _row([0.0 if isinstance(v, Tensor) else v for v in values], dtype, device)
        tensors = {k: v for k, v in enumerate(values) if isinstance(v, Tensor)}
        if tensors:
            row = row.clone()
            for k, value in tensors.items():
                row[k] = value.detach().reshape(())
        return row

    def forward(
        self,
        spec: Spec,
        given: Given,
        out: Tensor,
        after: Tensor,
        charged: Tensor | None,
        due: Tensor | None,
        keep: bool,
        again: bool,
    ) -> Tensor | None:
        spans = _room_for_spans(given, spec) if again else None
        gate = given.gate if charged is not None and spec.form.psc else None
        bits = None if gate is None else _room_for_bits(given)
        _launch(
            forward, given.drive, given.neurons,
            *_read(given), out, after, charged, due, spans, bits,
            given.steps, given.neurons, **_fixed(spec, given), GATE=gate, KEEP=keep,
        )  # fmt: skip
        return spans if bits is None else bits

    def backward(
        self,
        variant: Variant,
        given: Given,
        kept: Tensor | None,
        adjoints: Adjoints,
    ) -> None:
        spec, back, form = variant.spec, variant.back, variant.form
        given_h = spec.form.given_h and spec.form.psc
        spans, bits = (None, kept) if given_h else (kept, None)
        step = emit.backward_step(spec, back.rule, form, given.tau_s, given.drive.is_cuda)
        beside = 0
        if form.around:
            beside = 1 if spec.form.timing == "delayed" else -1
        _launch(
            backward, given.drive, given.neurons, *_read(given), spans, bits, given.fired,
            adjoints.out, adjoints.pace, adjoints.after, adjoints.link,
            adjoints.drive, adjoints.chain, adjoints.through, adjoints.entering,
            adjoints.trace, adjoints.sums,
            float(given.window), given.steps, given.neurons,
            **_fixed(spec, given), STEP_BACK=step, EACH=adjoints.stride > 0,
            LINKS=link_rows(spec.form.timing, back.rule), BESIDE=beside,
        )  # fmt: skip

    def forward_again(self, spec: Spec, numbers: Any) -> None:
        return None

    def backward_again(self, variant: Variant, paced: bool, numbers: Any) -> None:
        return None

    def row_loop(
        self,
        line: Line,
        outputs: Mapping[str, Symbol],
        numbers: Sequence[str],
        read: Collection[str],
        dtype: torch.dtype,
        gate: Gate | None = None,
    ) -> RowLoop:
        """A line for all neurons."""
        on_gpu = not emit.interpreted()
        made = emit.row(line, outputs, numbers, read, _name(dtype), gate, on_gpu)
        return _RowLoop(*made, frozenset(read), dtype)

    def current(self, drive: Tensor, start: Tensor, k: float) -> Tensor:
        return _scanned(emit.current, drive, start, k, down=False)

    def current_back(self, grad_out: Tensor, k: float) -> Tensor:
        return _scanned(emit.current_back, grad_out, None, k, down=True)


class _RowLoop:
    """A line for all neurons, as a kernel. It takes numbers on a GPU from the tensors ``read``."""

    def __init__(
        self, kernel: Any, takes: tuple[str, ...], read: frozenset[str], dtype: torch.dtype
    ) -> None:
        self.kernel, self.takes, self.read, self.dtype = kernel, takes, read, dtype

    def __call__(
        self, tensors: Sequence[Tensor], numbers: array[float], neurons: int, steps: float
    ) -> None:
        like = tensors[-1]
        for name, tensor in zip(self.takes, tensors, strict=True):
            kind, count = (tensor.dtype, 1) if name in self.read else (self.dtype, neurons)
            if name == BITS:
                kind, count = torch.uint8, triton.cdiv(neurons, 8)
            first, follow = tensor, True
            if name in LINKS:
                first, follow = tensor[0], tensor.stride(0) == neurons
                count = len(tensor) * neurons
            dense = is_memory(first, kind, like.device, channels_last(first))
            if not (dense and follow) or tensor.numel() != count:
                raise MismatchError.of(tensor, kind, count)
        row = _row(numbers or [0.0], self.dtype, like.device)  # of nothing there is no buffer
        _launch(self.kernel, like, neurons, neurons, row, steps, *tensors)


def _scanned(
    made: Callable[[str, bool], Any], drive: Tensor, start: Tensor | None, k: float, down: bool
) -> Tensor:
    """Run a current over time."""
    found, steps, neurons = torch.empty_like(drive), drive.shape[0], drive[0].numel()
    numbers = _row([k], working_dtype(drive), drive.device)
    step = made(_name(drive.dtype), drive.is_cuda)
    _launch(
        scan, drive, neurons, drive, start, found, numbers, steps, neurons,
        STEP=step, DOWN=down, SPAN=_span(steps),
    )  # fmt: skip
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _span(steps: int) -> int:
    return min(LONGEST_SPAN, int(triton.next_power_of_2(steps)))


def _room_for_spans(given: Given, spec: Spec) -> Tensor | None:
    """A buffer ``[spans - 1, 1 or 2, N]`` for the state at the start of each span but the first."""
    count = triton.cdiv(given.steps, _span(given.steps)) - 1
    states = 2 if spec.form.psc else 1
    return given.drive.new_empty((count, states, given.neurons)) if count else None


def _room_for_bits(given: Given) -> Tensor:
    """A buffer ``[N / 8]`` for one flag per neuron."""
    return given.drive.new_empty(triton.cdiv(given.neurons, 8), dtype=torch.uint8)


def _fixed(spec: Spec, given: Given) -> dict[str, Any]:
    """The constants that a kernel is compiled for."""
    step = emit.forward_step(spec, given.tau_s, given.drive.is_cuda)
    return {"STEP": step, "FORM": spec.form, "SPAN": _span(given.steps)}


def _read(given: Given) -> tuple[Tensor | None, ...]:
    return given.drive, given.state, given.trace, given.numbers


def _row(values: Iterable[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers, in float32 or float64, as a cached tensor on a device. Never write to it."""
    return _on_device(
        array("d" if dtype == torch.float64 else "f", values).tobytes(), dtype, device
    )


@lru_cache(maxsize=1024)
def _on_device(values: bytes, dtype: torch.dtype, device: torch.device) -> Tensor:
    # By their bytes: 0.0 and -0.0 are equal, and NaN is not what it is.
    with torch.inference_mode(False):
        return torch.frombuffer(bytearray(values), dtype=dtype).to(device)


def _launch(kernel: Any, drive: Tensor, neurons: int, *arguments: Any, **fixed: Any) -> None:
    """Run a kernel on a drive's device, one value per thread (two in half precision)."""
    block = THREADS * max(1, 4 // drive.element_size())
    grid = (triton.cdiv(neurons, block),)
    with _on(drive.device):
        kernel[grid](
            *arguments, **fixed, BLOCK=block, num_warps=THREADS // 32, enable_fp_fusion=False
        )


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


KERNELS = TritonBackend()
