"""Run one layer through the loop of a case."""

from __future__ import annotations

import linecache
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fuzzing.case import Case
from fuzzing.script import body

Seen = dict[tuple[str, int], Tensor]
"""The output of a loop: ``"out"`` and the states by name, after each step."""


@dataclass
class Ran:
    """The results of a layer, or how it failed.

    Attributes:
        seen: the output of its loop.
        grads: of the loss, by the code of each learned tensor.
        learns: whether the loss has a gradient at all.
        error: the exception that was raised, in which ``phase``.
    """

    seen: Seen = field(default_factory=dict)
    grads: dict[str, Tensor | None] = field(default_factory=dict)
    learns: bool = False
    error: Exception | None = None
    phase: str = "forward"


def names_of(case: Case, stepwise: bool = False) -> dict[str, Any]:
    """The names that the script defines."""
    return executed(body(case, stepwise=stepwise), f"<case {case.seed}>")


def executed(program: str, file: str) -> dict[str, Any]:
    """The names that a program defines, which can read its own source as if it were a file."""
    linecache.cache[file] = (len(program), None, program.splitlines(keepends=True), file)
    names: dict[str, Any] = {}
    exec(compile(program, file, "exec"), names)
    return names


def ran(case: Case, names: dict[str, Any]) -> Ran:
    """Run the loop over ``names["layer"]``, and compute the gradients of its loss."""
    found, layer = Ran(), names["layer"]
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
            found.seen = names["run"](layer)
        found.phase = "backward"
        loss = names["loss"](found.seen)
        codes = leaves(names)
        found.learns = isinstance(loss, Tensor) and loss.requires_grad
        if found.learns and codes:
            wanted = [eval(code, names) for code in codes]
            grads = torch.autograd.grad(loss, wanted, allow_unused=True)
            found.grads = dict(zip(codes, grads, strict=True))
    except Exception as error:
        found.error = error
    return found


def leaves(names: dict[str, Any]) -> list[str]:
    """The code of every learned tensor."""
    layer = names["layer"]
    codes = ["x", *(f"start[{name!r}]" for name in names["start"])]
    found = [code for code in codes if eval(code, names).requires_grad]
    found += [f"layer.{name}" for name, p in layer.named_parameters() if p.requires_grad]
    return found + [code for code, value in numbers(layer) if value.requires_grad]


def numbers(layer: Any) -> list[tuple[str, Tensor]]:
    """The tensors of a Norse layer's parameters, with their code."""
    found, rest = [], [("layer.p", getattr(layer, "p", ()))]
    if hasattr(layer, "spiking_method"):  # Izhikevich's, from which it starts
        rest.append(("layer.spiking_method.s", layer.spiking_method.s))
    while rest:
        code, value = rest.pop()
        if hasattr(value, "_asdict"):
            rest += [(f"{code}.{name}", inner) for name, inner in value._asdict().items()]
        elif isinstance(value, Tensor):
            found.append((code, value))
    return found
