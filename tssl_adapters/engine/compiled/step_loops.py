"""A step's forward and backward line as compiled loops: which tensor goes where."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from tssl_adapters.arithmetic import Line, Symbol
from tssl_adapters.engine.compiled.kernels import BITS, LINK, Gate, RowLoop, tensor_of
from tssl_adapters.engine.step.cell import Adjoint, Lines, Tensors

Compile: TypeAlias = "Callable[[Line, Mapping[str, Symbol], Gate | None], RowLoop]"


class _Loop:
    """A compiled line, given its tensors in the order of these names."""

    def __init__(self, loop: RowLoop, names: Sequence[str]) -> None:
        self.loop, self.at = loop, [names.index(name) for name in loop.takes]

    def __call__(
        self, tensors: Tensors, numbers: array[float], neurons: int, steps: float = math.inf
    ) -> None:
        self.loop([tensors[k] for k in self.at], numbers, neurons, steps)


class Forward:
    """The forward line.

    Args:
        found: the cell's lines.
        given: the names of inputs, states and trace.
        numbers: the names of the numbers in tensors.
        compile_: compiles a line.
        gate: if given, ``bits`` are written too.
    """

    def __init__(
        self,
        found: Lines,
        given: Sequence[str],
        numbers: Sequence[str],
        compile_: Compile,
        gate: float | None,
    ) -> None:
        made = found.outputs
        self.results = [name for name in made if name not in ("h", "due", "psc")]
        self.bits = gate is not None
        handed_on = made["s0"].place == made["h"].place
        by_h = {"s0"} if handed_on or found.from_h is not None else set()
        needed = [name for name in found.adjoint.kept if name.startswith("s")]
        outputs = {name: made[name] for name in self.results}
        outputs |= {name: made[name] for name in ("h", "due", "psc") if name in made}
        outputs |= {f"own.{name}": made[name] for name in needed if name not in by_h}
        self.outputs = [*outputs]
        left = self.outputs[len(self.results) :]
        self.due = left.index("due") if "due" in left else None
        self.copies = {
            int(name[1:]): left.index("h" if name in by_h else f"own.{name}") for name in needed
        }
        """The states that the backward step needs, and which of the outputs that are not results
        is kept for each: the user may write to what a step returns.
        """
        self.names = [*given, *numbers]
        self.functions = []
        for name, argument, compute, _ in found.functions:
            self.names.append(name)
            names = [*self.names[:-1], f"to.{name}"]
            loop = _Loop(compile_(found.line, {name: argument}, None), names)
            self.functions.append((loop, compute))
        self.names += [*(f"to.{name}" for name in outputs), *([BITS] if self.bits else [])]
        judged = None if gate is None else Gate("psc" if "psc" in outputs else "out", gate)
        self.loop = _Loop(compile_(found.line, outputs, judged), self.names)

    def run(self, given: Tensors, numbers: array[float]) -> tuple[list[Tensor], Tensors]:
        """All tensors of a step, in the order of ``names``, and those of the outputs."""
        x = given[0]
        n, tensors = x.numel(), [*given]
        empty_like = torch.empty_like
        for loop, compute in self.functions:
            room = empty_like(x)
            tensors.append(room)
            loop(tensors, numbers, n)
            compute(room)
        made = [empty_like(x) for _ in self.outputs]
        tensors += made
        if self.bits:
            tensors.append(x.new_empty(-(-n // 8), dtype=torch.uint8))
        self.loop(tensors, numbers, n)
        return tensors, made


class Backward:
    """The backward line.

    Args:
        adjoint: the line.
        given: the names of what is kept, of the numbers in tensors, and of what comes in.
        wanted: the names of what has a gradient.
        compile_: compiles a line.
    """

    def __init__(
        self, adjoint: Adjoint, given: Sequence[str], wanted: Sequence[str], compile_: Compile
    ) -> None:
        grads = {
            name: symbol
            for name, symbol in adjoint.grads.items()
            if tensor_of(name)[0] != LINK and adjoint.line.operations[symbol.place].name != "number"
        }
        first = {symbol.place: name for name, symbol in reversed(grads.items())}
        own = [*dict.fromkeys(first[symbol.place] for symbol in grads.values())]
        self.rooms = len(own)
        at = {name: own.index(first[symbol.place]) for name, symbol in grads.items()}
        linked = {**at, "s0": at.get("s0.linked")}
        self.at = [[place.get(name) for name in wanted] for place in (at, linked)]
        """Which room holds a wanted gradient, if it is not zero, without and with a link: equal
        ones share it.
        """
        links = {n: symbol for n, symbol in adjoint.grads.items() if tensor_of(n)[0] == LINK}
        outputs = {name: grads[name] for name in own} | links
        names = [*given, *(f"to.{name}" for name in own), f"to.{LINK}"]
        self.loop = _Loop(compile_(adjoint.line, outputs, None), names)
