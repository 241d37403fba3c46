"""A step's forward and backward line as compiled loops: which tensor goes where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor

from tssl_adapters.arithmetic import Line, Symbol
from tssl_adapters.engine.compiled.kernels import LINK_NAME, Gate, RowLoop, tensor_of
from tssl_adapters.engine.step.cell import Adjoint, Lines

Compile: TypeAlias = "Callable[[Line, Mapping[str, Symbol], Gate | None], RowLoop]"


class Torch(NamedTuple):
    """What torch computes for a line.

    Attributes:
        name: that of its result.
        argument: the loop that writes its argument to ``"to."`` and that name.
        compute: turns the argument into the result, in place.
    """

    name: str
    argument: RowLoop
    compute: Callable[[Tensor], object]


class ForwardLoop:
    """The forward line. Its loop's tensors are inputs, states, numbers, and results prefixed with
    ``"to."``.

    Args:
        found: the cell's lines.
        compile_: compiles a line.
        gate: if given, ``bits`` are written too.
        fixed: whether the neuron's numbers stay as they are.
    """

    def __init__(self, found: Lines, compile_: Compile, gate: float | None, fixed: bool) -> None:
        made = {**found.outputs}
        handed_on = made["s0"].place == made["h"].place
        self.defers = fixed and handed_on and made.pop("due", None) is not None
        """Whether r is not written: it is what the potential before the step says of it."""
        self.results = [name for name in made if name not in ("h", "due", "psc")]
        self.bits = gate is not None
        by_h = {"s0"} if handed_on or found.from_h is not None else set()
        needed = [name for name in found.adjoint.kept if name.startswith("s")]
        outputs = {name: made[name] for name in self.results}
        outputs |= {name: made[name] for name in ("h", "due", "psc") if name in made}
        outputs |= {f"own.{name}": made[name] for name in needed if name not in by_h}
        self.outputs = [*outputs]
        own = {int(name[1:]): "h" if name in by_h else f"own.{name}" for name in needed}
        wanted = {"due", *own.values(), *(["h"] if self.defers else [])}
        self.left = [name for name in self.outputs[len(self.results) :] if name in wanted]
        """The outputs that are handed on though they are no results: they have no gradient."""
        self.copies = {state: self.left.index(name) for state, name in own.items()}
        """The states that the backward step needs, and which of ``left`` is kept for each: the user
        may write to what a step returns.
        """
        self.functions = [
            Torch(name, compile_(found.line, {name: argument}, None), compute)
            for name, argument, compute, _ in found.functions
        ]
        judged = None if gate is None else Gate("psc" if "psc" in outputs else "out", gate)
        self.loop = compile_(found.line, outputs, judged)


class BackwardLoop:
    """The backward line.

    Args:
        adjoint: the line.
        wanted: the names of what has a gradient.
        compile_: compiles a line.
    """

    def __init__(self, adjoint: Adjoint, wanted: Sequence[str], compile_: Compile) -> None:
        grads = {
            name: symbol
            for name, symbol in adjoint.grads.items()
            if tensor_of(name)[0] != LINK_NAME
            and adjoint.line.operations[symbol.place].name != "number"
        }
        first = {symbol.place: name for name, symbol in reversed(grads.items())}
        self.own = [*dict.fromkeys(first[symbol.place] for symbol in grads.values())]
        """The gradients that have a room, which is the loop's, prefixed with ``"to."``."""
        at = {name: self.own.index(first[symbol.place]) for name, symbol in grads.items()}
        linked = {**at, "s0": at.get("s0.linked")}
        self.at = [[place.get(name) for name in wanted] for place in (at, linked)]
        """Which room holds a wanted gradient, if it is not zero, without and with a link: equal
        ones share it.
        """
        links = {n: symbol for n, symbol in adjoint.grads.items() if tensor_of(n)[0] == LINK_NAME}
        self.loop = compile_(adjoint.line, {name: grads[name] for name in self.own} | links, None)
