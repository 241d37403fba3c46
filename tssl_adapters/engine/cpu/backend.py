"""The CPU backend: picks the loop for a call and passes it the memory."""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tssl_adapters.arithmetic import Line, Symbol
from tssl_adapters.engine.compiled.kernels import (
    Adjoints,
    Again,
    Gate,
    Given,
    MismatchError,
    RowLoop,
    Variant,
)
from tssl_adapters.engine.compiled.threads import over
from tssl_adapters.engine.cpu import backward, loops
from tssl_adapters.engine.cpu.backward import BackwardPlaces
from tssl_adapters.engine.cpu.compile import compiled, vector_bits
from tssl_adapters.engine.cpu.function import LARGE, RANGE, Source
from tssl_adapters.engine.cpu.loops import CurrentBackPlaces, CurrentPlaces, ForwardPlaces
from tssl_adapters.engine.step.spec import ROWS, Spec, link_rows
from tssl_adapters.neuron import Value

LARGEST_BLOCK = 256
"""The most neurons that the backward pass holds at once: few enough that the next step's reads can
be prefetched meanwhile."""
SCRATCH = 2**17
"""The values per block that the backward pass holds at once: they stay in the L2 cache, and with a
thousand steps there are still enough neurons side by side. A quarter of it took 1.3 times as long,
and 2.3 times at T = 1000."""
_NAMES = {torch.float32: "float32", torch.float64: "float64"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_numbers = itertools.count()


def _name() -> str:
    """A new function name: all compiled functions share one namespace."""
    return f"loop{next(_numbers)}"


@cache
def _made(make: Callable[..., Source], *form: Any) -> Callable[..., None]:
    """A loop, compiled. ``form``: what its source is made for."""
    return compiled(make(_name(), *form, vector_bits()))


_rows: dict[Any, RowLoop] = {}
"""Compiled rows, by what they compute."""


class Numbers:
    """A neuron's numbers in memory, a row each: ``[8]``, or ``[8, N]`` where neurons differ."""

    def __init__(
        self, values: Sequence[Value], dense: bool, dtype: torch.dtype, step: torch.Size
    ) -> None:
        self.dtype, self.count = dtype, ROWS * (step.numel() if dense else 1)
        if dense:
            rows = [torch.as_tensor(v, dtype=dtype).detach().expand(step) for v in values]
            self.dense = torch.stack(rows).contiguous()
            self.at = self.dense.data_ptr()
        else:
            self.few = _few(map(float, values), dtype)
            self.at = self.few.buffer_info()[0]

    def address(self, dtype: torch.dtype, count: int) -> int:
        """The address of the numbers.

        Raises:
            MismatchError: they are not ``count`` values of this dtype.
        """
        if self.dtype is not dtype or self.count != count:
            raise MismatchError(f"{self.count} numbers in {self.dtype}, not {count} in {dtype}")
        return self.at


_address = Tensor.data_ptr


def _few(values: Any, dtype: torch.dtype) -> array[float]:
    return array("f" if dtype == torch.float32 else "d", values)


class CpuBackend:
    """The CPU backend, in float32 and float64.

    Args:
        large: from how many bytes on a sequence is written past the caches.
    """

    name, joins = "cpu", True

    def __init__(self, large: int = LARGE) -> None:
        self.large = large

    @property
    def ways(self) -> tuple[CpuBackend, ...]:
        return self, CpuBackend(large=0)

    def takes(self, drive: Tensor) -> bool:
        return drive.is_cpu and drive.dtype in _NAMES

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
        due: Tensor | None,
        keep: bool,
        again: bool,
    ) -> Tensor | None:
        n, dtype, keeps_h = given.neurons, _DTYPES[spec.form.dtype], charged is not None
        bits = None
        gate = given.gate if keeps_h and spec.form.psc else None
        if gate is not None:
            bits = given.drive.new_empty(-(-n // 8), dtype=torch.uint8)
        if given.steps == 1:
            traced = given.trace is not None
            loop = _made(loops.forward_step, spec, given.tau_s, traced, keeps_h, gate)
        else:
            loop = _made(loops.forward_sequence, spec, given.tau_s, keep)
        current, leaked = _synapse_at(given, dtype)
        places = ForwardPlaces(
            large=self.large,
            drive=_at(given.drive, dtype, given.steps * n),
            state=_at(given.state, dtype, n),
            values=_numbers_at(spec, given),
            out=_own(out),
            after=_own(after),
            trace=_at(given.trace, dtype, n),
            charged=_own(charged),
            bits=_own(bits),
            due=_own(due),
            current=current,
            leaked=leaked,
        )
        over(loop, given.steps, n, *places)
        return bits

    def backward(
        self,
        variant: Variant,
        given: Given,
        kept: Tensor | None,
        adjoints: Adjoints,
    ) -> None:
        spec, n, steps = variant.spec, given.neurons, given.steps
        dtype, rows = _DTYPES[spec.form.dtype], link_rows(spec.form.timing, variant.back.rule)
        window = _few([given.window], dtype)
        places = BackwardPlaces(
            large=self.large,
            block=_block(steps),
            window=window.buffer_info()[0],
            drive=_at(given.drive, dtype, steps * n),
            state=_at(given.state, dtype, n),
            values=_numbers_at(spec, given),
            grad_drive=_own(adjoints.drive),
            current=_synapse_at(given, dtype)[0],
            trace=_at(given.trace, dtype, n),
            bits=_at(kept, torch.uint8, -(-n // 8)),
            fired=_at(given.fired, dtype, n),
            pace=adjoints.pace,
            grad_out=_at(adjoints.out, dtype, steps * n if adjoints.pace else n),
            stride=adjoints.stride,
            grad_after=_at(adjoints.after, dtype, steps * n if adjoints.stride else n),
            link=_at(adjoints.link, dtype, rows * n),
            grad_current=_at(adjoints.leaked, dtype, n),
            chain=_own(adjoints.chain),
            through=_own(adjoints.through),
            entering=_own(adjoints.entering),
            grad_trace=_own(adjoints.trace),
            sums=_own(adjoints.sums),
        )
        over(_backward_loop(variant), steps, n, *places)

    def forward_again(self, spec: Spec, numbers: Numbers) -> Again:
        loop, at, large = _made(loops.forward_sequence, spec, 1.0, False), numbers.at, self.large

        def run(steps: int, neurons: int, window: float, tensors: Sequence[Tensor | None]) -> None:
            _look(tensors, steps, neurons)
            drive, state, current, out, after, leaked = map(_own, tensors)
            places = ForwardPlaces(
                large, drive, state, at, out, after, current=current, leaked=leaked
            )
            over(loop, steps, neurons, *places)

        return run

    def backward_again(self, variant: Variant, paced: bool, numbers: Numbers) -> Again:
        loop, at, known = _backward_loop(variant), numbers.at, _Window(numbers.dtype)
        large = self.large

        def run(steps: int, neurons: int, window: float, tensors: Sequence[Tensor | None]) -> None:
            _look(tensors, steps, neurons)
            drive, state, current, *rest = map(_own, tensors)
            out, after, link, leaked, *rooms = rest
            grad_drive, chain, through, entering = rooms
            memory = known.of(window)  # held until the loop has run
            places = BackwardPlaces(
                large,
                _block(steps),
                memory.buffer_info()[0],
                drive,
                state,
                at,
                grad_drive,
                current=current,
                pace=neurons if paced else 0,
                grad_out=out,
                grad_after=after,
                link=link,
                grad_current=leaked,
                chain=chain,
                through=through,
                entering=entering,
            )
            over(loop, steps, neurons, *places)

        return run

    def row_loop(
        self,
        line: Line,
        outputs: Mapping[str, Symbol],
        numbers: Sequence[str],
        read: Collection[str],
        dtype: torch.dtype,
        gate: Gate | None = None,
    ) -> RowLoop:
        """A line for all neurons; the caller has checked the tensors."""
        assert not read  # what is computed on the CPU has its numbers there
        places = tuple((name, symbol.place) for name, symbol in outputs.items())
        key = (tuple(line.operations), places, tuple(numbers), dtype, gate)
        if key not in _rows:
            source = loops.row_over_all(
                _name(), line, outputs, numbers, _NAMES[dtype], gate, vector_bits()
            )
            _rows[key] = _RowLoop(source, dtype)
        return _rows[key]

    def current(self, drive: Tensor, start: Tensor, k: float) -> Tensor:
        out, dtype, (steps, n) = torch.empty_like(drive), drive.dtype, _size(drive)
        number = _few([k], dtype)
        places = CurrentPlaces(
            values=number.buffer_info()[0],
            drive=_at(drive, dtype, steps * n),
            state=_at(start, dtype, n),
            out=_own(out),
        )
        over(_made(loops.current, _NAMES[dtype]), steps, n, *places)
        return out

    def current_back(self, grad_out: Tensor, k: float) -> Tensor:
        found, dtype, (steps, n) = torch.empty_like(grad_out), grad_out.dtype, _size(grad_out)
        number = _few([k], dtype)
        places = CurrentBackPlaces(
            values=number.buffer_info()[0],
            grad_out=_at(grad_out, dtype, steps * n),
            grad_drive=_own(found),
        )
        over(_made(loops.current_back, _NAMES[dtype]), steps, n, *places)
        return found


class _RowLoop:
    """A line for all neurons, compiled."""

    def __init__(self, source: Source, dtype: torch.dtype) -> None:
        self.loop, self.dtype = compiled(source), dtype
        self.takes = source.parameters[len(RANGE) + 2 :]
        self.window = _Window(dtype)

    def __call__(
        self, tensors: Sequence[Tensor], numbers: array[float], neurons: int, steps: float
    ) -> None:
        window = self.window.of(steps)
        numbers_at, window_at = numbers.buffer_info()[0], window.buffer_info()[0]
        over(self.loop, 1, neurons, numbers_at, window_at, *map(_address, tensors))


class _Window:
    """The number of time steps of a window, in memory; that of the last call is kept."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.last = (math.inf, _few((math.inf,), dtype))

    def of(self, steps: float) -> array[float]:
        known, window = self.last  # one attribute: another thread may call it meanwhile
        if known != steps:
            window = _few((steps,), self.dtype)
            self.last = steps, window
        return window


def _block(steps: int) -> int:
    """How many neurons a backward pass holds at once."""
    return max(32, min(LARGEST_BLOCK, SCRATCH // (steps + 1) // 32 * 32))


@cache
def _backward_loop(variant: Variant) -> Callable[..., None]:
    make = backward.backward_step if variant.single else backward.backward_sequence
    spec, rule = variant.spec, variant.back.rule
    return _made(make, spec, rule, variant.form, variant.tau_s, variant.unwanted)


def _at(tensor: Tensor | None, dtype: torch.dtype, count: int) -> int:
    """The address of incoming memory: ``count`` contiguous values of a dtype; 0 for none.

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
        raise MismatchError.of(tensor, dtype, count)
    return tensor.data_ptr()


def _look(tensors: Sequence[Tensor | None], steps: int, neurons: int) -> None:
    """Look once more whether the drive is that of as many steps and neurons: whatever went wrong,
    no memory of others is to be written to.
    """
    drive = tensors[0]
    if drive is None or drive.numel() != steps * neurons:
        raise AssertionError(f"a drive of {steps} x {neurons} values was expected")


def _own(tensor: Tensor | None) -> int:
    """The address of memory that was allocated for this call like checked memory; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()


def _synapse_at(given: Given, dtype: torch.dtype) -> tuple[int, int]:
    """The addresses of the incoming current and of the current after the last step."""
    if given.synapse is None:
        return 0, 0
    current, _, leaked = given.synapse
    return _at(current, dtype, given.neurons), _own(leaked)


def _numbers_at(spec: Spec, given: Given) -> int:
    numbers: Numbers = given.numbers
    count = ROWS * (given.neurons if spec.form.dense else 1)
    return numbers.address(_DTYPES[spec.form.dtype], count)


def _size(tensor: Tensor) -> tuple[int, int]:
    return tensor.shape[0], tensor[0].numel()


KERNELS = CpuBackend()
