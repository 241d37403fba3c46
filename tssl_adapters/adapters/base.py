"""The adapter interface. An adapter is the only place that imports its library."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from inspect import signature
from types import ModuleType
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from tssl_adapters.adapters.library import copied, from_library
from tssl_adapters.adapters.parts import Part, Walk
from tssl_adapters.elementwise import ordinary
from tssl_adapters.engine.call.settings import OtherNeuronError, Settings
from tssl_adapters.neuron import Traits
from tssl_adapters.rules import Rule
from tssl_adapters.rules.native import Surrogate
from tssl_adapters.tracing import among_graphs, compiling, exporting, tracing, watched

F = TypeVar("F", bound=Callable[..., Any])
Mode: TypeAlias = Literal["step", "sequence"]


def eager(forward: F) -> F:
    """Decorate a layer's forward pass: torch.compile breaks its graph there; torch.export, and a
    call without a graph, get the library's own.
    """
    call = _giving_way(forward)
    between = among_graphs(call)

    @wraps(forward)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        decided = self._tssl_settings.decided
        if decided is not None and not kwargs and not tracing() and self._tssl_unaltered():
            ran = self._tssl_as_decided(decided, *args)
            if ran is not None:
                return ran
        if self._tssl_runs_native():
            return self._tssl_native.forward(self, *args, **kwargs)
        if not (compiling() or watched()):
            return call(self, *args, **kwargs)
        from tssl_adapters.uncompiled import call_eagerly  # imported where torch.compile is

        if not compiling():
            return call_eagerly(call, self, *args, **kwargs)
        ran = self._tssl_in_graph(*args, **kwargs)
        return call_eagerly(between, self, *args, **kwargs) if ran is None else ran

    return run  # type: ignore[return-value]


def _giving_way(forward: F) -> F:
    """A layer's forward pass with the rule's gradient, or with the library's in a call where the
    layer is no longer the neuron that was wrapped.
    """
    named = signature(forward)

    @wraps(forward)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            self._tssl_look()
            return forward(self, *args, **kwargs)
        except OtherNeuronError as error:
            self._tssl_settings.give_way(error)
        if self._tssl_settings.tau_s == 1.0:
            return self._tssl_native.forward(self, *args, **kwargs)
        given = named.bind(self, *args, **kwargs)
        given.apply_defaults()
        return self._tssl_emitted(*given.args[1:], **given.kwargs)

    return call  # type: ignore[return-value]


@contextmanager
def untouched(layer: nn.Module) -> Iterator[None]:
    """Restore a layer's attributes on exit, and the entries of those that are dictionaries."""
    own = vars(layer)
    before = dict(own)
    within = {name: dict(value) for name, value in own.items() if isinstance(value, dict)}
    try:
        yield
    finally:
        for name in own.keys() - before.keys():
            del own[name]
        own.update(before)
        for name, value in within.items():
            own[name].clear()
            own[name].update(value)


class Wrapped:
    """Mixed into a library's layer class; ``wrap`` swaps a layer's class to such a subclass.

    Swapping the class keeps the object, its parameters, buffers, hooks, ``state_dict`` keys and
    ``isinstance``; as the subclass is module-level, deepcopy and pickle keep working.
    """

    _tssl_native: ClassVar[Any]
    _tssl_settings: Settings

    def _get_name(self) -> str:
        name: str = self._tssl_native.__name__
        return name

    def extra_repr(self) -> str:
        """The library's own text, then the rule and the engine."""
        own: str = super().extra_repr()  # type: ignore[misc]
        self._tssl_follow()
        ours = f"tssl_adapters: {self._tssl_settings.said(self._tssl_traits(self))}"
        return f"{own.rstrip(', ')}, {ours}" if own else ours

    @classmethod
    def _tssl_traits(cls, layer: Any) -> Traits:
        """The traits of a layer, wrapped or not, that rules consult."""
        raise NotImplementedError

    @classmethod
    def _tssl_spikes(cls, layer: Any) -> Callable[[Tensor], Tensor]:
        """The library's function from h - theta to the spikes of a layer, wrapped or not, with the
        layer's own surrogate gradient.
        """
        raise NotImplementedError

    @classmethod
    def _tssl_own(cls, layer: Any) -> Sequence[Any]:
        """All that a layer's surrogate depends on. It is checked in every call; in those that
        compiled steps handle, only the parts that they do not know to be unchanged.
        """
        raise NotImplementedError

    @classmethod
    def _tssl_surrogate(cls, layer: Any) -> Surrogate:
        """The surrogate of a layer, wrapped or not."""
        raise NotImplementedError

    def _tssl_follow(self) -> None:
        """Update a rule that follows the layer's surrogate."""
        settings = self._tssl_settings
        if settings.rule.follows and (own := self._tssl_own(self)) != settings.followed:
            settings.rule = settings.rule.following(self._tssl_surrogate(self))
            settings.followed, settings.decided = own, None
            settings.loops.clear()

    _tssl_free: ClassVar[frozenset[str]] = frozenset({"training"})
    """Attributes, such as its states, that can be set without changing the neuron."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Setting anything that may change the neuron discards its compiled steps, and the
        name by which compiled graphs find the layer.
        """
        settings = self.__dict__.get("_tssl_settings")
        if settings is not None and name not in self._tssl_free:
            settings.decided, settings.name = None, ""
        super().__setattr__(name, value)

    def _tssl_as_decided(self, decided: Any, *args: Any) -> Any:
        """The output of a call for which what was decided holds; ``None`` for any other call."""
        return None

    def _tssl_in_graph(self, *args: Any, **kwargs: Any) -> Any:
        """The output of a call that torch.compile keeps in its graph; ``None`` for any other call,
        which breaks it.
        """
        return None

    def _tssl_parts(self) -> tuple[Any, ...]:
        """The functions that the layer uses besides its class's methods, and their settings."""
        raise NotImplementedError

    def _tssl_size(self) -> int:
        """How many attributes the layer has, without those that a call may add."""
        return len(self.__dict__)

    def _tssl_look(self) -> None:
        """Check that the layer is made of the same parts as in the previous call, at the cost of a
        function call, and update a rule that follows the layer's surrogate.
        """
        if exporting():  # which has the library's gradient anyway
            return
        made_of = (self._tssl_size(), *self._tssl_parts())
        self._tssl_settings.look(made_of, self._tssl_altered)
        self._tssl_follow()

    def _tssl_unaltered(self) -> bool:
        """Whether the layer is made of the same parts as in the previous call."""
        return self._tssl_settings.made_of == (self._tssl_size(), *self._tssl_parts())

    def _tssl_altered(self: Any) -> str | None:
        """Why the layer as it is now cannot be wrapped, or ``None``."""
        return no_spikes(type(self), self)

    def _tssl_emitted(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's output at ``tau_s > 1`` with its library's own gradient."""
        raise NotImplementedError

    def _tssl_runs_native(self) -> bool:
        """Whether to run the library's forward pass: there is no gradient to attach, and no PSC."""
        return self._tssl_settings.tau_s == 1.0 and (not torch.is_grad_enabled() or exporting())


def wrapped_classes(
    module: str, library: ModuleType, mixins: Mapping[str, type | tuple[type, ...]]
) -> dict[type[nn.Module], type[Any]]:
    """A wrapped class for each of a library's classes, by that class.

    Args:
        module: ``__name__`` of the calling module. Pickle looks for the classes there, under the
            library's names with ``Wrapped`` before them.
        library: the module that has the library's classes.
        mixins: what to mix into which class. Those that the installed version lacks are left out.
    """
    found: dict[type[nn.Module], type[Any]] = {}
    for name, mixed in mixins.items():
        native = getattr(library, name, None)
        if native is None:
            continue
        body = {"_tssl_native": native, "__module__": module}
        bases = mixed if isinstance(mixed, tuple) else (mixed,)
        found[native] = type(f"Wrapped{name}", (*bases, native), body)
        setattr(sys.modules[module], f"Wrapped{name}", found[native])
    return found


def no_spikes(wrapped: type[Wrapped], layer: nn.Module) -> str | None:
    """Why a layer's surrogate function does not give spikes, or ``None``."""
    with torch.random.fork_rng(devices=[]), ordinary(), torch.no_grad():
        distance = torch.tensor([-8.0, -0.5, 0.5, 8.0])
        try:
            spikes = wrapped._tssl_spikes(layer)(distance).tolist()
        except Exception:  # its first call reports what it lacks
            return None
    if spikes == [0.0, 0.0, 1.0, 1.0]:
        return None
    near = ", ".join(f"{value:.3g}" for value in spikes)
    return (
        f"its surrogate function gives {near} at {distance.tolist()} from the threshold, which are "
        "no spikes; take one that gives 0 below the threshold and 1 above it"
    )


def rule_for(rule: Rule, wrapped: type[Wrapped], layer: nn.Module) -> Rule:
    """The rule for a layer, following its surrogate if the rule is one that does."""
    return rule.following(wrapped._tssl_surrogate(layer)) if rule.follows else rule


def always_fits(wrapped: Any, layer: nn.Module) -> str | None:
    """The ``problem`` of a class that has none."""
    return None


@dataclass(frozen=True)
class Kind:
    """A supported layer class.

    Attributes:
        wrapped: the subclass that a layer's class is swapped to.
        problem: ``problem(wrapped, layer)`` says which of the layer's settings cannot be wrapped;
            ``None`` if all can.
        attach: called on a layer after it is wrapped, ``detach`` before it is unwrapped.
        passed_by: methods that a wrapped layer does not call, or not in every call, so that another
            class's version of them would be ignored; ``instead``: what the user can do instead.
    """

    wrapped: type[Wrapped]
    problem: Callable[[Any, Any], str | None] = always_fits
    attach: Callable[[Any], None] = field(default=lambda layer: None)
    detach: Callable[[Any], None] = field(default=lambda layer: None)
    passed_by: tuple[str, ...] = ("forward",)
    instead: str = ""


Kinds: TypeAlias = "dict[type[nn.Module], Kind]"


@dataclass(frozen=True)
class Adapter:
    """One library.

    Attributes:
        library: its top-level module.
        spiking: whether a module of the library emits spikes.
        native: whether a module that does not spike is worth a line in ``inspect``.
        mode: ``"step"`` or ``"sequence"``: what a layer takes in one call; ``None`` for a module to
            which that makes no difference.
        part: how a module of the library runs over a whole sequence, ``None`` for other modules.
        example: makes a layer of a supported class and a number of neurons, with default settings.
            If it cannot be copied, the same one for the same state of torch's random generator.
        record: a layer's outputs over ``[T, batch, ...]``, from rest, and its final states.
        kinds: supported classes, matched exactly, never by isinstance.
        loops: containers that feed a layer's spikes back to it, wrapped for rules that cut this
            feedback from the gradient.
        find: makes ``kinds`` and ``loops``, where they are empty, once the library is imported.
        copy: how to wrap a class that is a copy of the library's class of that name, in any
            version: a kind without the class itself.
        reasons: why a class, or its subclasses, cannot be wrapped, by class name.
        reset: sets the states that a model's layers hold back to rest.
        steps: how many time steps a layer takes in one call, ``None`` for any number.
        registries: attributes of a layer, besides torch's own, that are dicts of what it registers
            by name, each with the word for one entry.
        containers: how to put the library's layers into a model for ``multi_step_forward``.
        modes: the library's way to switch all layers of a model between steps and sequences.
        derived: the user's classes that were found to match a supported one, or a copy of one;
            filled in by the package.
    """

    library: str
    spiking: Callable[[nn.Module], bool]
    native: Callable[[nn.Module], bool]
    mode: Callable[[nn.Module], Mode | None]
    part: Callable[[Walk, str, nn.Module], Part | None]
    example: Callable[[type[nn.Module], int], nn.Module]
    record: Callable[[Any, Tensor], list[Tensor]]
    kinds: Kinds = field(default_factory=dict)
    loops: Kinds = field(default_factory=dict)
    find: Callable[[], tuple[Kinds, Kinds]] = field(default=lambda: ({}, {}))
    copy: Callable[[type[nn.Module]], Kind | None] = field(default=lambda cls: None)
    reasons: Mapping[str, str] = field(default_factory=dict)
    reset: Callable[[nn.Module], None] = field(default=lambda model: None)
    steps: Callable[[Any], int | None] = field(default=lambda layer: None)
    registries: Mapping[str, str] = field(default_factory=dict)
    containers: str = ""
    modes: str = ""
    derived: Kinds = field(default_factory=dict)

    def kind(self, cls: type[nn.Module], rule: Rule) -> Kind | None:
        """How a class is wrapped for a rule; ``None`` if it is not."""
        return self.kinds.get(cls) or (self.loops.get(cls) if rule.cuts_feedback else None)

    def made(self) -> dict[type[nn.Module], Kind]:
        """Every class whose layers may already be wrapped."""
        return self.derived | self.kinds | self.loops

    def run(self, layer: Any, x: Tensor) -> Tensor:
        """A layer's outputs over ``[T, batch, ...]``, from rest."""
        return self.record(layer, x)[0]

    def why_not(self, layer: nn.Module) -> str:
        """Why a spiking layer without a :class:`Kind` is refused."""
        for base in type(layer).__mro__:
            theirs = from_library(self.library, base) or copied(base) == self.library
            if base.__name__ in self.reasons and theirs:
                return self.reasons[base.__name__]
        found = self.base(type(layer))
        if found is not None:
            known, _ = found
            mine, name = type(layer).__name__, known.__name__
            adds = additions(self, layer, known)
            return (
                f"it is a subclass of {name} and may have another neuron or another output, for it "
                f"{adds}; if it has not, say tssl_adapters.register({mine}, like={name})"
            )
        return "its neuron is not known to this version of tssl_adapters"

    def base(self, cls: type[nn.Module]) -> tuple[type[nn.Module], Kind] | None:
        """The nearest supported class, or copy, that a class is or derives from, with its kind."""
        for base in cls.__mro__:
            kind = self.kinds.get(base)
            if kind is None and copied(base) == self.library:
                kind = self.copy(base)
            if kind is not None:
                return base, kind
        return None


_UNTOUCHED = {
    *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__init__"),
    *("__annotations__", "__annotate_func__", "__annotations_cache__", "__parameters__"),
    *("__firstlineno__", "__static_attributes__", "__orig_bases__", "__abstractmethods__"),
    "_abc_impl",
}
"""Attributes that a subclass may define without being another neuron."""
HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
"""Where a module keeps its hooks."""
_REGISTERED = {
    "_parameters": "parameter",
    "_buffers": "buffer",
    "_modules": "module",
}
"""Where torch keeps what a module registers, and the word for one entry."""


def additions(adapter: Adapter, layer: nn.Module, base: type[nn.Module]) -> str:
    """What a layer has beyond its class ``base``, in words; empty if nothing.

    ``__init__``, and constants that the base does not have, are ignored.
    """
    own = [cls for cls in type(layer).__mro__ if cls not in base.__mro__]
    defines = sorted(
        {name for cls in own for name, value in vars(cls).items() if _matters(name, value, base)}
    )
    if defines:
        return f"defines {', '.join(defines)}"
    with torch.random.fork_rng(devices=[]), ordinary():
        example = vars(adapter.example(base, 1))
    registries = {**_REGISTERED, **adapter.registries}
    known = {name for kept in registries for name in example.get(kept) or ()}
    known.update(signature(base).parameters)  # what its own settings register
    for kept, called in registries.items():
        more = [name for name in vars(layer).get(kept) or () if name not in known]
        if more:
            return f"registers the {called} {', '.join(map(repr, more))}"
    hooked = [name for name in HOOKS if len(vars(layer).get(name, ())) > len(example.get(name, ()))]
    return "has hooks" if hooked else ""


def _matters(name: str, value: Any, base: type) -> bool:
    if name in _UNTOUCHED:
        return False
    return callable(value) or hasattr(type(value), "__get__") or hasattr(base, name)
