"""A model's state, which can be restored any number of times."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Snapshot:
    """What the modules of a model hold, and the state of every random generator.

    Of each module: its class and its attributes, with the contents of the dictionaries, lists,
    sets and tuples among them, and so its parameters, buffers, hidden states, hooks and flags. Of
    each tensor: values, gradient, and attributes. Other objects are not copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self._classes = [(m, type(m), type(m).__bases__) for m in model.modules()]
        self._contents: dict[int, tuple[Any, Any]] = {}
        self._tensors: dict[int, _Tensor] = {}
        for module, *_ in self._classes:
            self._keep(vars(module))
        on_cuda: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self._on_cuda = on_cuda
        self._random = self._generators()

    def _keep(self, value: Any) -> None:
        if isinstance(value, Tensor):
            if id(value) not in self._tensors:
                self._tensors[id(value)] = _Tensor.of(value)
        elif isinstance(value, tuple):
            for part in value:
                self._keep(part)
        elif isinstance(value, dict | list | set | deque) and id(value) not in self._contents:
            self._contents[id(value)] = value, value.copy()
            for part in value.values() if isinstance(value, dict) else value:
                self._keep(part)

    def _generators(self) -> tuple[Any, ...]:
        cuda = torch.cuda.get_rng_state_all() if self._on_cuda else []
        return torch.get_rng_state(), cuda, np.random.get_state(), random.getstate()

    def restore(self) -> None:
        """Put everything back."""
        for module, cls, bases in self._classes:
            if cls.__bases__ != bases:  # a parametrization's class belongs to one layer
                cls.__bases__ = bases
            if type(module) is not cls:
                module.__class__ = cls
        for value, content in self._contents.values():
            value.clear()
            value.extend(content) if isinstance(value, list | deque) else value.update(content)
        for tensor in self._tensors.values():
            tensor.restore()
        self.rewind()

    def rewind(self) -> None:
        """Set the random generators back to their saved state."""
        torch_state, cuda, numpy_state, python_state = self._random
        torch.set_rng_state(torch_state)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


@dataclass(frozen=True)
class _Tensor:
    """A tensor as it was."""

    tensor: Tensor
    values: Tensor
    grad: Tensor | None
    leaf: bool
    requires_grad: bool
    attributes: dict[str, Any]

    @classmethod
    def of(cls, tensor: Tensor) -> _Tensor:
        grad = tensor.grad if tensor.is_leaf else None
        values, attributes = tensor.detach().clone(), dict(vars(tensor))
        return cls(tensor, values, grad, tensor.is_leaf, tensor.requires_grad, attributes)

    def restore(self) -> None:
        tensor, values = self.tensor, self.values
        # Through .data, so that a graph that already exists does not notice the write.
        if tensor.shape != values.shape or tensor.dtype != values.dtype:
            tensor.data = values.clone()
        elif tensor.layout is not torch.strided or not torch.equal(tensor.detach(), values):
            tensor.data.copy_(values)
        if self.leaf:
            if not tensor.is_leaf:  # something was written to it in place, with a graph
                tensor.detach_()
            tensor.requires_grad_(self.requires_grad)
            tensor.grad = self.grad
        vars(tensor).clear()
        vars(tensor).update(self.attributes)
