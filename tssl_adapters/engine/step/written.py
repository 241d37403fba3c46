"""Records what torch computes as a line of operations.

A neuron is compiled from its library's own step: the step is run once on small stand-in tensors,
and each torch operation that it calls is added to the line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tssl_adapters.arithmetic import Line, Symbol, where
from tssl_adapters.elementwise import on_host
from tssl_adapters.neuron import Value


class CannotWriteError(Exception):
    """Torch was asked for something that a line cannot express."""


class Function(NamedTuple):
    """A function that torch computes, as its last digit is torch's own.

    Attributes:
        name: its name as an input of the line.
        argument: its argument.
        compute: computes it in place.
        slope: its derivative.
    """

    name: str
    argument: Symbol
    compute: Callable[[Tensor], Tensor]
    slope: Symbol


class Derived(NamedTuple):
    """A number that torch computes from one that learns.

    Attributes:
        of: the number that learns, in a one-element tensor.
        compute: computes the function in place.
    """

    of: Tensor
    compute: Callable[[Tensor], Tensor]

    def value(self) -> float:
        """What it is now, as torch rounds it."""
        return float(self.compute(self.of.detach().clone()))


_COMPUTED: dict[str, Callable[..., Symbol]] = {
    "add": lambda left, right: left + right,
    "sub": lambda left, right: left - right,
    "rsub": lambda left, right: right - left,
    "mul": lambda left, right: left * right,
    "div": lambda left, right: left / right,
    "neg": lambda value: -value,
    "reciprocal": lambda value: 1.0 / value,
    "square": lambda value: value * value,
    "relu": lambda value: where(value <= 0.0, 0.0, value),
    "where": where,
    "clamp": lambda value, least, most: where(
        value < least, least, where(value > most, most, value)
    ),
    "gt": lambda left, right: left > right,
    "ge": lambda left, right: left >= right,
    "lt": lambda left, right: left < right,
    "le": lambda left, right: left <= right,
    "detach": lambda value: value.line.compute("held", value),
}
_SLOPES: dict[str, Callable[[Symbol], Symbol]] = {
    "exp": lambda result: result,
    "sigmoid": lambda result: result * (1.0 - result),
}
_SAME = {
    *("clone", "alias", "unsqueeze", "squeeze", "select", "unbind", "stack", "cat", "view"),
    *("expand", "_unsafe_view", "reshape", "_to_copy"),
}
"""Operations that leave the values unchanged as long as their number stays the same."""
_FILLED = {"zeros": 0.0, "ones": 1.0, "zeros_like": 0.0, "ones_like": 1.0}


class Writer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, writes into a line what torch computes from stand-ins.

    Numbers, Python's own or in one-element tensors, become inputs of the line, named ``"n0"`` and
    so on; ``numbers`` holds their values. Tensors with a number for each neuron become ``"p0"`` and
    so on, in ``spread``. What is computed of numbers alone is a number too, except
    of those that learn or are on a GPU, whose values are not known before the line runs; a function
    of one that learns is a number again, :class:`Derived`.

    Args:
        line: where to write.
        like: a tensor with the stand-ins' shape and device, and their dtype, which is that of
            everything computed from them.

    Raises:
        CannotWriteError: while active, at an operation that a line cannot express.
    """

    def __init__(self, line: Line, like: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.line, self.dtype, self.like = line, like.dtype, like
        self.numbers: list[Value | Derived] = []
        self.spread: list[Tensor] = []
        self.sources: dict[int, Tensor] = {}
        """The numbers' tensors that existed before."""
        self.functions: list[Function] = []
        self.derived: list[Function] = []
        """Functions of numbers, of which the results are numbers."""
        self.known_as: dict[int, Symbol] = {}
        """What replaces the symbols at these places from here on."""
        self._symbols: dict[int, Symbol] = {}
        self._known: dict[Any, str] = {}
        self._made: list[Any] = []
        """Kept alive, so that no id is reused."""
        self._own: set[int] = set()
        self._numbers = count()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch need not keep its compiler away, whose import takes a second: nothing is compiled
        where a step is written down.
        """
        return False

    def stand_in(self, symbol: Symbol) -> Tensor:
        """A tensor that stands for a symbol."""
        count, shape = self.like.numel(), self.like.shape
        values = torch.linspace(-1.0, 1.0, count, dtype=self.dtype, device=self.like.device)
        self._made.append(values.view(shape))
        self._symbols[id(self._made[-1])] = symbol
        return self._made[-1]  # type: ignore[no-any-return]

    def symbol(self, value: Any) -> Symbol:
        """The symbol of a tensor or a number."""
        if isinstance(value, Symbol):
            return value
        if id(value) in self._symbols:
            return self._symbols[id(value)]
        if isinstance(value, Tensor):
            if value.is_complex() or (value.numel() != 1 and not value.is_cpu):
                raise CannotWriteError(f"{value.numel()} numbers in {value.dtype}")
            self._met(value)
            key = ("tensor", id(value))
            return self._of_all(key, value) if value.numel() == 1 else self._of_each(key, value)
        if isinstance(value, bool | int | float):
            return self._of_all(float(value).hex(), float(value))
        raise CannotWriteError(f"{value!r}")

    def forget(self, but: Sequence[Symbol]) -> None:
        """Forget the functions that these symbols do not depend on."""
        needed = {*self.line.needed(but)}
        self.functions = [f for f in self.functions if self.line.input(f.name).place in needed]

    def learned(self) -> dict[str, Tensor]:
        """The numbers that take a gradient, by name."""
        found: list[tuple[str, Any]] = [(f"n{k}", v) for k, v in enumerate(self.numbers)]
        found += [(f"p{k}", v) for k, v in enumerate(self.spread)]
        return {name: v for name, v in found if isinstance(v, Tensor) and v.requires_grad}

    def read(self) -> dict[str, Tensor]:
        """The numbers that are on a GPU, by name."""
        found = enumerate(self.numbers)
        return {f"n{k}": v for k, v in found if isinstance(v, Tensor) and not on_host(v)}

    def _of_all(self, key: Any, value: Value | Derived) -> Symbol:
        if key not in self._known:
            self._known[key] = f"n{len(self.numbers)}"
            self.numbers.append(value)
        return self.line.input(self._known[key])

    def _of_each(self, key: Any, value: Tensor) -> Symbol:
        if key not in self._known:
            self._known[key] = f"p{len(self.spread)}"
            self.spread.append(value)
        return self.line.input(self._known[key])

    def _varies(self, tensor: Tensor) -> bool:
        """Whether its values are only known when the line runs."""
        return id(tensor) in self._symbols or tensor.requires_grad or not on_host(tensor)

    def _met(self, tensor: Tensor) -> None:
        if id(tensor) not in self._own:
            self.sources[id(tensor)] = tensor

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        results = [r for r in _flat([found]) if isinstance(r, Tensor)]
        self._made += results
        name = func._schema.name.removeprefix("aten::")
        if name in _FILLED or name in ("full", "full_like"):
            value = _FILLED[name] if name in _FILLED else float(args[1])
            self._symbols[id(found)] = self.line.number(value)
            return found
        tensors = [a for a in _flat(args) if isinstance(a, Tensor)]
        for tensor in tensors:
            if id(tensor) not in self._symbols:
                self._met(tensor)
        if not any(map(self._varies, tensors)):
            self._own.update(map(id, results))  # a number computed from numbers
            return found
        self._write(name, args, kwargs, results)
        return found

    def _write(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], results: list[Tensor]
    ) -> None:
        if len(results) != 1 or results[0].dtype not in (self.dtype, torch.bool):
            raise CannotWriteError(name)
        result, plain = results[0], name.removesuffix("_")
        given = [a for a in _flat(args) if isinstance(a, Tensor)]
        if name in _SAME:
            if len(given) != 1 or given[0].numel() != result.numel():
                raise CannotWriteError(name)
            symbol = self.symbol(given[0])
            if given[0].dtype != result.dtype:
                symbol = where(symbol, 1.0, 0.0)
        elif plain == "pow" and not isinstance(args[1], Tensor) and args[1] == 2:
            symbol = self.symbol(args[0]) * self.symbol(args[0])
        elif plain == "sub" and not kwargs and isinstance(args[1], float) and args[1] == 0.0:
            symbol = self.symbol(args[0])  # subtracting 0.0 changes nothing
        elif plain in _SLOPES:
            symbol = self._function(plain, self.symbol(args[0]))
        elif plain in _COMPUTED and not kwargs:  # with a factor torch rounds once
            symbol = _COMPUTED[plain](*map(self.symbol, args))
        else:
            raise CannotWriteError(name)
        self._symbols[id(result)] = self.known_as.get(symbol.place, symbol)

    def _function(self, name: str, argument: Symbol) -> Symbol:
        """One of torch's functions: an input, for torch to compute."""
        number = self._number(argument)
        if number is not None:
            return self._derived(name, argument, number)
        for known in self.functions:
            if known.argument.place == argument.place and known.compute.__name__ == f"{name}_":
                return self.line.input(known.name)
        called = f"f{next(self._numbers)}"  # each comes after those it depends on
        result = self.line.input(called)
        compute = getattr(torch, f"{name}_")
        self.functions.append(Function(called, argument, compute, _SLOPES[name](result)))
        return result

    def _number(self, symbol: Symbol) -> Tensor | None:
        """The number that a symbol is, if it is one that learns and can be looked at."""
        operation = self.line.operations[symbol.place]
        tensor = None
        if operation.name == "input":
            tensor = self.learned().get(operation.operands[0])
        return tensor if tensor is not None and on_host(tensor) else None

    def _derived(self, name: str, argument: Symbol, number: Tensor) -> Symbol:
        compute = getattr(torch, f"{name}_")
        known = len(self.numbers)
        result = self._of_all((name, id(number)), Derived(number, compute))
        if len(self.numbers) > known:
            called: str = self.line.operations[result.place].operands[0]
            self.derived.append(Function(called, argument, compute, _SLOPES[name](result)))
        return result


def _flat(values: Sequence[Any]) -> list[Any]:
    """Values, with nested lists and tuples flattened."""
    found = []
    for value in values:
        found += _flat(value) if isinstance(value, list | tuple) else [value]
    return found
