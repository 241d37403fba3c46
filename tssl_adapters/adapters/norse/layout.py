"""Where a state's tensors are, one after another as compiled steps take them."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter, itemgetter
from typing import Any

from torch import Tensor

from tssl_adapters.adapters import Tensors


class Layout:
    """That of all states of a type; to look for it in each would take as long as a small step.

    A state has a potential, at least one other tensor, and perhaps spikes. A refractory neuron's
    has the state of its own step in a field, and its counter, ``rho``.

    Args:
        state: one of them.
    """

    def __init__(self, state: Any) -> None:
        fields = state._asdict().items()
        self.nested = next((name for name, value in fields if isinstance(value, tuple)), None)
        inner = self.inner(state)
        self.names = ("v", *(name for name in inner._fields if name not in ("v", "z")))
        """The fields of a neuron's own state, the potential first, without the spikes."""
        paths = [name if self.nested is None else f"{self.nested}.{name}" for name in self.names]
        paths += [] if self.nested is None else ["rho"]
        self.tensors: Callable[[Any], tuple[Tensor, ...]] = attrgetter(*paths)
        """A state's tensors, a refractory neuron's counter last."""
        at = {name: k for k, name in enumerate((*self.names, "z"))}
        self._fields = itemgetter(*(at[name] for name in inner._fields))

    def inner(self, state: Any) -> Any:
        """The state of the neuron's own step."""
        return state if self.nested is None else getattr(state, self.nested)

    def changed(self, state: Any, tensors: Tensors, sent: Tensor | None) -> Any:
        """A state with these tensors, as :attr:`tensors` gives them, and these spikes, ``None`` for
        its own.
        """
        inner = self.inner(state)
        if sent is None:
            sent = getattr(inner, "z", None)
        made = type(inner)(*self._fields((*tensors[: len(self.names)], sent)))
        if self.nested is None:
            return made
        return state._replace(**{self.nested: made, "rho": tensors[-1]})


_known: dict[type, Layout] = {}


def known_layout(state: Any) -> Layout | None:
    """A state's, if it was asked for before."""
    return _known.get(type(state))


def layout(state: Any) -> Layout:
    """A state's."""
    known = _known.get(type(state))
    if known is None:
        known = _known[type(state)] = Layout(state)
    return known
