"""Classes of the user's own that behave as a class which an adapter knows."""

from __future__ import annotations

import copyreg
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from tssl_adapters import adapters
from tssl_adapters.adapters.base import Adapter, Wrapped

C = TypeVar("C", bound=type[nn.Module])


def register(cls: C, *, like: type[nn.Module]) -> C:
    """Say that a class of your own computes the neuron of a class that is known.

    :func:`tssl_adapters.wrap` matches exact classes, because a subclass may have another neuron or
    another output. A registered class is wrapped as the one that it is like, and has to have that
    one's attributes, as a subclass has. The step that it computes stays its own; at its first call
    a probe sees whether it is that neuron indeed, and the layer raises
    :class:`tssl_adapters.errors.LibraryVersionError` if not. What a wrapped layer would not call,
    as a SpikingJelly node's own ``forward``, makes ``wrap`` refuse the layer. Register a class
    where it is defined, so that wrapped layers can be unpickled wherever it can be imported.

    Args:
        cls: your layer class.
        like: a class that :func:`tssl_adapters.supported` lists, or that was registered.

    Returns:
        ``cls``.

    Raises:
        TypeError: ``cls`` or ``like`` is not a module class.
        ValueError: ``like`` is not known, or ``cls`` is torch's own, or known already as something
            else.

    Example:
        >>> class MyLIF(neuron.LIFNode): ...
        >>> tssl_adapters.register(MyLIF, like=neuron.LIFNode)
    """
    for name, value in (("class", cls), ("like", like)):
        if not (isinstance(value, type) and issubclass(value, nn.Module)):
            raise TypeError(f"tssl_adapters.register takes layer classes; {name} is {value!r}.")
    if cls.__module__.startswith("torch."):
        raise ValueError(
            f"tssl_adapters.register: {cls.__name__} is torch's own, and every model's; register a "
            "class of yours."
        )
    adapter = _adapter_of(like)
    if adapter is None:
        raise ValueError(
            f"tssl_adapters.register: like={like.__name__} is not a known class; "
            "tssl_adapters.supported() lists those that are."
        )
    known = _adapter_of(cls)
    if known is not None:
        if _like(known, cls) is like:
            return cls
        raise ValueError(f"tssl_adapters.register: {cls.__name__} is known already.")
    kind = adapter.kinds[like]
    adapter.kinds[cls] = replace(kind, wrapped=_wrapped_class(cls, like, kind.wrapped))
    return cls


def _adapter_of(cls: type[nn.Module]) -> Adapter | None:
    return next((adapter for adapter in adapters.loaded() if cls in adapter.kinds), None)


def _like(adapter: Adapter, cls: type[nn.Module]) -> Any:
    return getattr(adapter.kinds[cls].wrapped, "_tssl_like", None)


def library_class(adapter: Adapter, cls: type[nn.Module]) -> type[nn.Module]:
    """The library's class that a known class is, or was registered like."""
    like = _like(adapter, cls)
    return cls if like is None else library_class(adapter, like)


class _Registered(Wrapped):
    """A wrapped class that was made while the program runs, and so cannot be found by its name."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        if reduced[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return reduced  # the user's class has a way of its own
        return (_new, (self._tssl_native, self._tssl_like, *reduced[1][1:]), *reduced[2:])

    _tssl_like: type[nn.Module]


def _new(cls: Any, like: Any, *arguments: Any) -> Any:
    """Unpickle: an empty object of the wrapped class."""
    register(cls, like=like)
    adapter = _adapter_of(cls)
    assert adapter is not None
    wrapped = adapter.kinds[cls].wrapped
    return wrapped.__new__(wrapped, *arguments)


def _wrapped_class(cls: type[nn.Module], like: type[nn.Module], wrapped: type) -> type[Wrapped]:
    """The wrapped class of ``like``, mixed into ``cls`` instead."""
    left_out = {"__dict__", "__weakref__", "__module__", "__qualname__", "__doc__"}
    body = {name: value for name, value in vars(wrapped).items() if name not in left_out}
    known = (*like.__mro__, _Registered)
    mixins = [base for base in wrapped.__bases__ if base not in known]
    body |= {"_tssl_native": cls, "_tssl_like": like, "__module__": cls.__module__}
    made: type[Wrapped] = type(f"Wrapped{cls.__name__}", (_Registered, *mixins, cls), body)
    return made
