"""What an adapter is: the one place that a library is imported in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from inspect import signature
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from tssl_adapters.adapters.library import copied, from_library
from tssl_adapters.adapters.parts import Part, Walk
from tssl_adapters.elementwise import ordinary
from tssl_adapters.engine.state import OtherNeuronError, Settings
from tssl_adapters.neuron import Traits
from tssl_adapters.rules import Rule
from tssl_adapters.rules.native import Surrogate
from tssl_adapters.tracing import among_graphs, compiling, exporting, tracing, untraced, watched

F = TypeVar("F", bound=Callable[..., Any])
Mode: TypeAlias = Literal["step", "sequence"]


def eager(forward: F) -> F:
    """A layer's forward pass: torch.compile breaks its graph there, and torch.export, or a call
    without a graph, sees the library's own.
    """
    call = _giving_way(forward)
    apart, between = untraced(call), among_graphs(call)

    @wraps(forward)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        thin = self._tssl_settings.thin
        if thin is not None and not kwargs and not tracing() and self._tssl_unaltered():
            ran = self._tssl_thinly(thin, *args)
            if ran is not None:
                return ran
        if self._tssl_runs_native():
            return self._tssl_native.forward(self, *args, **kwargs)
        if compiling():
            return between(self, *args, **kwargs)
        # Untraced whatever it calls; where nobody traces, that takes as long as a small sum.
        return (apart if watched() else call)(self, *args, **kwargs)

    return run  # type: ignore[return-value]


def _giving_way(forward: F) -> F:
    """A layer's forward pass with the rule's gradient; in a call in which it is not the neuron that
    it was wrapped as, with the library's.
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
    """Whatever a layer does to what it holds, it holds afterwards what it held before."""
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
    ``isinstance``, and, being module-level, deepcopy and pickle.
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
        """What a rule may ask of a layer, wrapped or not."""
        raise NotImplementedError

    @classmethod
    def _tssl_spikes(cls, layer: Any) -> Callable[[Tensor], Tensor]:
        """What a layer, wrapped or not, computes its spikes with from h - theta: the library's
        function, with the layer's own surrogate gradient.
        """
        raise NotImplementedError

    @classmethod
    def _tssl_own(cls, layer: Any) -> Sequence[Any]:
        """All that a layer's surrogate may change by. It is looked at in every call, but for those
        as ``thin`` knows them, where that says of some of it that it is as it was.
        """
        raise NotImplementedError

    @classmethod
    def _tssl_surrogate(cls, layer: Any) -> Surrogate:
        """The surrogate of a layer, wrapped or not."""
        raise NotImplementedError

    def _tssl_follow(self) -> None:
        """Have a rule that follows the layer's surrogate do so."""
        settings = self._tssl_settings
        if settings.rule.follows and (own := self._tssl_own(self)) != settings.followed:
            settings.rule = settings.rule.following(self._tssl_surrogate(self))
            settings.followed, settings.thin = own, None
            settings.loops.clear()

    _tssl_free: ClassVar[frozenset[str]] = frozenset({"training"})
    """Attributes that may be set without a change of the neuron: its states."""

    def __setattr__(self, name: str, value: Any) -> None:
        """What was decided of the layer's steps ends with any of its settings."""
        settings = self.__dict__.get("_tssl_settings")
        if settings is not None and name not in self._tssl_free:
            settings.thin = None
        super().__setattr__(name, value)

    def _tssl_thinly(self, thin: Any, *args: Any) -> Any:
        """A call as ``thin`` knows it; ``None`` where it is another."""
        return None

    def _tssl_parts(self) -> tuple[Any, ...]:
        """The functions that the layer is made of, beside its class's, and settings of theirs."""
        raise NotImplementedError

    def _tssl_look(self) -> None:
        """See to it that the layer is made of what it was in the call before: that takes as long as
        a function call. A rule that follows the layer's surrogate does so.
        """
        if exporting():  # which has the library's gradient anyway
            return
        made_of = (len(self.__dict__), *self._tssl_parts())
        self._tssl_settings.look(made_of, self._tssl_altered)
        self._tssl_follow()

    def _tssl_unaltered(self) -> bool:
        """Whether it is made of what it was in the call before."""
        return self._tssl_settings.made_of == (len(self.__dict__), *self._tssl_parts())

    def _tssl_altered(self: Any) -> str | None:
        """Why what the layer is made of now cannot be wrapped."""
        return no_spikes(type(self), self)

    def _tssl_emitted(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer gives at ``tau_s > 1`` with its library's own gradient."""
        raise NotImplementedError

    def _tssl_runs_native(self) -> bool:
        """Without a graph and without a PSC there is nothing to attach: native speed."""
        return self._tssl_settings.tau_s == 1.0 and (not torch.is_grad_enabled() or exporting())


def no_spikes(wrapped: type[Wrapped], layer: nn.Module) -> str | None:
    """Why what a layer computes with its surrogate function are no spikes, or ``None``."""
    with torch.random.fork_rng(devices=[]), ordinary(), torch.no_grad():
        distance = torch.tensor([-8.0, -0.5, 0.5, 8.0])
        try:
            spikes = wrapped._tssl_spikes(layer)(distance).tolist()
        except Exception:  # what it needs, its first call tells
            return None
    if spikes == [0.0, 0.0, 1.0, 1.0]:
        return None
    near = ", ".join(f"{value:.3g}" for value in spikes)
    return (
        f"its surrogate function gives {near} at {distance.tolist()} from the threshold, which are "
        "no spikes; take one that gives 0 below the threshold and 1 above it"
    )


def rule_for(rule: Rule, wrapped: type[Wrapped], layer: nn.Module) -> Rule:
    """The rule as a layer is to have it."""
    return rule.following(wrapped._tssl_surrogate(layer)) if rule.follows else rule


def always_fits(wrapped: Any, layer: nn.Module) -> str | None:
    """The ``problem`` of a class that has none."""
    return None


@dataclass(frozen=True)
class Kind:
    """A supported layer class.

    Attributes:
        wrapped: the subclass that a layer's class is swapped to.
        problem: says what of a layer's settings cannot be wrapped, or ``None``; takes ``wrapped``
            and the layer.
        attach: called on a layer after it was wrapped, ``detach`` before it is unwrapped.
        passed_by: methods that a wrapped layer does not call, or not in every call, so that what
            another class has in their place would be lost; ``instead``: what else one can do.
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
        mode: ``"step"`` or ``"sequence"``: what a call of a layer brings; ``None`` for a module to
            which that makes no difference.
        part: what a module of the library is over a whole sequence, ``None`` for another's.
        example: makes a layer of a supported class, of so many neurons, with default settings.
            Where it cannot be copied, the same one at the same state of torch's generator.
        record: a layer's outputs over ``[T, batch, ...]``, from rest, and its states after them.
        kinds: supported classes, matched exactly, never by isinstance.
        loops: containers that hand a layer's spikes back to it, wrapped for rules that leave that
            out of the gradient.
        find: makes ``kinds`` and ``loops`` once the library was imported, where they are empty.
        copy: how a class of that name is wrapped that is a copy of the library's, of whatever
            version: a kind without the class itself.
        reasons: why a class, or its subclasses, cannot be wrapped, by class name.
        reset: puts the states that a model's layers hold back to rest.
        steps: how many time steps a layer takes at once, ``None`` for any number.
        registries: attributes of a layer that are dicts of what it registers by name, beside
            torch's own, each with what one such thing is called.
        containers: how the library's layers go into a model that ``multi_step_forward`` runs.
        modes: what in the library makes all layers of a model take steps, or sequences.
        derived: classes of the user's that were found to be a supported one, or a copy of it;
            written by the package.
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
        """How a class is wrapped for a rule, if it is."""
        return self.kinds.get(cls) or (self.loops.get(cls) if rule.cuts_feedback else None)

    def made(self) -> dict[type[nn.Module], Kind]:
        """Every class of which a layer may be wrapped already."""
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
        """The nearest supported class that a class is or derives from, a copy of one included."""
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
"""What a class may have of its own without being another neuron."""
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
"""Where torch keeps what a module registers, and what that is called."""


def additions(adapter: Adapter, layer: nn.Module, base: type[nn.Module]) -> str:
    """What a layer's class has beside what it has from ``base``; empty where it is that one's.

    ``__init__`` and constants that the base does not have count for nothing.
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
    known.update(signature(base).parameters)  # what a setting of its own makes
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
