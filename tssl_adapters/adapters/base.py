"""What an adapter is: the one place that a library is imported in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from tssl_adapters.adapters.parts import Part, Walk
from tssl_adapters.engine.state import Settings
from tssl_adapters.neuron import Traits
from tssl_adapters.rules import Rule

F = TypeVar("F", bound=Callable[..., Any])
Mode: TypeAlias = Literal["step", "sequence"]


def eager(forward: F) -> F:
    """Break torch.compile's graph at a layer: what is around it compiles, the layer runs as is."""
    return torch.compiler.disable(forward)  # type: ignore[no-any-return, no-untyped-call]


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
        ours = f"tssl_adapters: {self._tssl_settings.said(self._tssl_traits(self))}"
        return f"{own.rstrip(', ')}, {ours}" if own else ours

    @classmethod
    def _tssl_traits(cls, layer: Any) -> Traits:
        """What a rule may ask of a layer, wrapped or not."""
        raise NotImplementedError

    def _tssl_runs_native(self) -> bool:
        """Without a graph and without a PSC there is nothing to attach: native speed."""
        return self._tssl_settings.tau_s == 1.0 and not torch.is_grad_enabled()


def always_fits(layer: nn.Module) -> str | None:
    """The ``problem`` of a class that has none."""
    return None


@dataclass(frozen=True)
class Kind:
    """A supported layer class.

    Attributes:
        wrapped: the subclass that a layer's class is swapped to.
        problem: says what of a layer's settings cannot be wrapped, or ``None``.
        attach: called on a layer after it was wrapped, ``detach`` before it is unwrapped.
    """

    wrapped: type[Wrapped]
    problem: Callable[[Any], str | None] = always_fits
    attach: Callable[[Any], None] = field(default=lambda layer: None)
    detach: Callable[[Any], None] = field(default=lambda layer: None)


@dataclass(frozen=True)
class Adapter:
    """One library.

    Attributes:
        library: import name and name of the distribution.
        kinds: supported classes, matched exactly, never by isinstance.
        spiking: whether a module of the library emits spikes.
        native: whether a module that does not spike is worth a line in ``inspect``.
        loops: containers that hand a layer's spikes back to it, wrapped for rules that leave that
            out of the gradient.
        reasons: why a class, or its subclasses, cannot be wrapped, by class name.
        mode: ``"step"`` or ``"sequence"``: what a call of a layer brings; ``None`` for a module to
            which that makes no difference.
        part: what a module of the library is over a whole sequence, ``None`` for another's.
        example: makes a layer of a supported class, of so many neurons, with default settings.
        run: an example's outputs over ``[T, batch, neurons]``, from rest.
    """

    library: str
    kinds: dict[type[nn.Module], Kind]
    spiking: Callable[[nn.Module], bool]
    native: Callable[[nn.Module], bool]
    mode: Callable[[nn.Module], Mode | None]
    part: Callable[[Walk, str, nn.Module], Part | None]
    example: Callable[[type[nn.Module], int], nn.Module]
    run: Callable[[Any, Tensor], Tensor]
    loops: dict[type[nn.Module], Kind] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    def kind(self, cls: type[nn.Module], rule: Rule) -> Kind | None:
        """How a class is wrapped for a rule, if it is."""
        return self.kinds.get(cls) or (self.loops.get(cls) if rule.cuts_feedback else None)

    def why_not(self, layer: nn.Module) -> str:
        """Why a spiking layer without a :class:`Kind` is refused."""
        for base in type(layer).__mro__:
            if base.__name__ in self.reasons and from_library(self.library, base):
                return self.reasons[base.__name__]
        for base in self.kinds:
            if isinstance(layer, base):
                mine, known = type(layer).__name__, base.__name__
                return (
                    f"it is a subclass of {known} and may have another neuron or another output; "
                    f"if it has not, say tssl_adapters.register({mine}, like={known})"
                )
        return "its neuron is not known to this version of tssl_adapters"


def defined_by(library: str, module: nn.Module) -> bool:
    """Whether a module's own class is the library's, rather than the user's."""
    return from_library(library, type(module))


def from_library(library: str, cls: type) -> bool:
    """Whether a class is the library's."""
    return cls.__module__.split(".")[0] == library
