"""The user's own classes that behave like a class known to an adapter."""

from __future__ import annotations

import copyreg
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from tssl_adapters.adapters.base import Adapter, Kind, Wrapped, additions
from tssl_adapters.adapters.library import from_library
from tssl_adapters.adapters.loading import loaded
from tssl_adapters.errors import UnsupportedLayerError
from tssl_adapters.rules import Rule

C = TypeVar("C", bound=type[nn.Module])


def register(cls: C, *, like: type[nn.Module]) -> C:
    """Declare that your class computes the same neuron as a known class.

    :func:`tssl_adapters.wrap` matches classes exactly, because a subclass may compute another
    neuron or another output. Only a subclass that adds nothing but ``__init__`` and constants needs
    no registration. A registered class is wrapped like the known one and needs its attributes, as
    a subclass has them; it keeps its own step. Methods that a wrapped layer would not call, such as
    a ``forward`` of its own, are refused here. ``wrap`` tests each layer and refuses one that
    computes another neuron, detaches its state, or keeps something that a wrapped layer would lose.
    Register a class where it is defined, so that wrapped layers can be unpickled wherever it can be
    imported.

    Args:
        cls: your layer class.
        like: a class that :func:`tssl_adapters.supported` lists, or that was registered.

    Returns:
        ``cls``.

    Raises:
        UnsupportedLayerError: the class lacks methods of ``like``, or overrides some that a wrapped
            layer would not call.
        TypeError: ``cls`` or ``like`` is not a module class.
        ValueError: ``like`` is not known; or ``cls`` is torch's own, or already known as another
            class.

    Example:
        >>> class MyLIF(neuron.LIFNode): ...
        >>> tssl_adapters.register(MyLIF, like=neuron.LIFNode)
    """
    for name, value in (("class", cls), ("like", like)):
        if not (isinstance(value, type) and issubclass(value, nn.Module)):
            given = (
                value if isinstance(value, type) else f"an object of class {type(value).__name__}"
            )
            raise TypeError(f"tssl_adapters.register takes layer classes; {name} is {given}.")
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
    why = _another_path(adapter.library, cls, like, kind)
    if why is not None:
        raise UnsupportedLayerError(
            f"tssl_adapters.register: {cls.__name__} cannot be registered like {like.__name__}: "
            f"{why}."
        )
    adapter.kinds[cls] = _kind_of(cls, like, kind, said=True)
    return cls


def _another_path(
    library: str, cls: type[nn.Module], like: type[nn.Module], kind: Kind
) -> str | None:
    """Why a wrapped layer of a class would fail or skip the class's own methods, or ``None``."""
    missing = sorted(name for name in _methods(like) if not hasattr(cls, name))
    if missing:
        return (
            f"it lacks {', '.join(missing)}, which that has; derive it from {like.__name__}, or "
            "register it like a class whose methods it has"
        )
    theirs = [base for base in cls.__mro__ if base in like.__mro__ or from_library(library, base)]
    own = [
        name
        for name in kind.passed_by
        if any(name in vars(base) for base in cls.__mro__ if base not in theirs)
    ]
    if own:
        return (
            f"it overrides {', '.join(own)}, and a wrapped {like.__name__} goes by its own, so "
            "that what the class does there would be lost; put what it adds into a module around "
            "the layer"
            f"{kind.instead}"
        )
    return None


def _methods(cls: type[nn.Module]) -> set[str]:
    """The public methods and properties that a class has besides torch's."""
    own = (base for base in cls.__mro__ if base not in nn.Module.__mro__)
    return {
        name
        for base in own
        for name, value in vars(base).items()
        if not name.startswith("_") and (callable(value) or hasattr(type(value), "__get__"))
    }


def kind_of(adapter: Adapter, layer: nn.Module, rule: Rule) -> Kind | None:
    """How a layer is wrapped for a rule: its class may be a known one with other defaults."""
    cls = type(layer)
    kind = adapter.kind(cls, rule)
    if kind is not None:
        return kind
    found = adapter.base(cls)
    if found is None:
        return None
    base, kind = found
    if base is not cls and additions(adapter, layer, base):
        return None
    if cls not in adapter.derived:
        adapter.derived[cls] = _kind_of(cls, base, kind)
    return adapter.derived[cls]


def tried_as(kind: Kind) -> type[nn.Module] | None:
    """The class whose neuron such a layer must be shown to compute; ``None`` for a library's."""
    return getattr(kind.wrapped, "_tssl_like", None)


def registered(kind: Kind) -> bool:
    """Whether such a layer's class was registered, rather than recognised as a known one."""
    return bool(getattr(kind.wrapped, "_tssl_registered", False))


def _kind_of(cls: Any, like: type[nn.Module], kind: Kind, said: bool = False) -> Kind:
    """The kind of a class that is like another."""
    return replace(kind, wrapped=_wrapped_class(cls, like, kind.wrapped, said))


def _adapter_of(cls: type[nn.Module]) -> Adapter | None:
    return next((adapter for adapter in loaded() if cls in adapter.kinds), None)


def _like(adapter: Adapter, cls: type[nn.Module]) -> Any:
    kind = adapter.made().get(cls)
    return None if kind is None else tried_as(kind)


def library_class(adapter: Adapter, cls: type[nn.Module]) -> type[nn.Module]:
    """The library's class that a known class is, or was registered like."""
    like = _like(adapter, cls)
    return cls if like is None or like is cls else library_class(adapter, like)


class _Made(Wrapped):
    """A wrapped class that was made at run time, and so cannot be found by its name."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        if reduced[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return reduced  # the user's class has a way of its own
        made = (self._tssl_native, self._tssl_like, self._tssl_registered)
        return (_new, (*made, *reduced[1][1:]), *reduced[2:])

    _tssl_like: type[nn.Module]
    _tssl_registered: bool


def _new(cls: Any, like: Any, registered: bool, *arguments: Any) -> Any:
    """Unpickle: an empty object of the wrapped class."""
    adapter = next(a for a in loaded(like) if a.base(like) is not None)
    if registered:
        register(cls, like=like)
    elif cls not in adapter.derived:
        found = adapter.base(like)
        assert found is not None
        adapter.derived[cls] = _kind_of(cls, *found)
    wrapped = adapter.made()[cls].wrapped
    return wrapped.__new__(wrapped, *arguments)


def _wrapped_class(
    cls: type[nn.Module], like: type[nn.Module], wrapped: type, registered: bool
) -> type[Wrapped]:
    """The wrapped class of ``like``, mixed into ``cls`` instead."""
    mixins = [base for base in wrapped.__bases__ if base not in (*like.__mro__, _Made)]
    body = {name: value for name, value in vars(wrapped).items() if name.startswith("_tssl_")}
    body |= {"_tssl_native": cls, "_tssl_like": like, "_tssl_registered": registered}
    body["__module__"] = cls.__module__
    made: type[Wrapped] = type(f"Wrapped{cls.__name__}", (_Made, *mixins, cls), body)
    return made
