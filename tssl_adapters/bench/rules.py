"""The rules to compare, by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import torch
from torch import Tensor, nn

import tssl_adapters
from tssl_adapters import wrap
from tssl_adapters.bench import architectures
from tssl_adapters.bench.architectures import Network, Surrogate, UnknownNeuronError
from tssl_adapters.bench.method import FIRED
from tssl_adapters.bench.source import SourceError, attribute
from tssl_adapters.rules import (
    BY_NAME,
    STDBP,
    STRSBP,
    TSSLBP,
    Lee,
    Native,
    Rule,
    SmoothTSSLBP,
    Step,
    SurrogateGradient,
)
from tssl_adapters.rules.base import without_addresses

Derivative = Callable[[Tensor], Tensor]


class UnknownRuleError(ValueError):
    """There is no such rule, or the library lacks the surrogate it needs."""


class Contestant(NamedTuple):
    """A rule of the benchmark.

    Attributes:
        make: makes the rule from the surrogate's derivative.
        surrogate: the library's surrogate that the rule uses; empty if it needs none.
        plain: whether the library itself computes it where layers emit spikes.
        reset: whether its gradient depends on how far a reset lowers the potential, as a factor
            or a scale; that is meaningless where the reset only prevents a second spike.
        definition: what a user's own rule is.
    """

    make: Callable[[Derivative], Rule]
    surrogate: str = "native"
    plain: bool = False
    reset: bool = False
    definition: str = ""


@dataclass(frozen=True)
class ChainlessTSSLBP(TSSLBP):
    """TSSL-BP with no gradient flowing back from one time step to the one before."""

    chain = False


@dataclass(frozen=True)
class InThresholds(SurrogateGradient):
    """A surrogate gradient whose width and peak scale with the threshold.

    ``derivative`` maps (h - theta) / theta to theta times d spike / d h.
    """

    def slope(self, step: Step) -> Tensor:
        threshold = step.threshold
        theta = threshold.abs() if isinstance(threshold, Tensor) else abs(threshold)
        scaled = step._replace(charged=step.charged / theta, threshold=threshold / theta)
        return super().slope(scaled) / theta


def _superspike(steepness: float, x: Tensor) -> Tensor:
    """Zenke and Ganguli 2018: (1 + steepness |h - theta|)^-2."""
    return 1 / (1 + steepness * x.abs()) ** 2


def _arctan(narrowness: float, x: Tensor) -> Tensor:
    """The derivative of an arctan, of width 1 / narrowness and peak 1."""
    return 1 / (1 + (math.pi * narrowness * x) ** 2)


def _fallback(x: Tensor) -> Tensor:
    """The derivative of a sigmoid of TSSL-BP's width: its fallback, used as a surrogate."""
    width = TSSLBP().fallback_width
    sigmoid = torch.sigmoid((x / width).clamp(-8.0, 8.0))
    return sigmoid * (1 - sigmoid) / width


def _surrogate(name: str) -> Contestant:
    return Contestant(SurrogateGradient, name, plain=True)


def _fixed(rule: Rule) -> Contestant:
    return Contestant(lambda _: rule, surrogate="")


RULES = {
    "native": _surrogate("native"),
    "native-compiled": _fixed(Native())._replace(reset=True),
    "arctan": _surrogate("arctan"),
    "fast-sigmoid": _surrogate("fast-sigmoid"),
    "native-detached": Contestant(partial(SurrogateGradient, reset_path="none")),
    "native-complete-reset": Contestant(
        partial(SurrogateGradient, reset_path="complete"), reset=True
    ),
    "native-no-chain": Contestant(partial(SurrogateGradient, chain=False)),
    "smooth-tsslbp": _fixed(SmoothTSSLBP())._replace(reset=True),
    "tsslbp": _fixed(TSSLBP()),
    "tsslbp-no-fallback": _fixed(TSSLBP(fallback=False)),
    "tsslbp-fallback-only": _fixed(SurrogateGradient(_fallback, reset_path="none")),
    "tsslbp-no-reset": _fixed(TSSLBP(reset_path="none")),
    "tsslbp-complete-reset": _fixed(TSSLBP(reset_path="complete")),
    "tsslbp-no-chain": _fixed(ChainlessTSSLBP()),
    "lee": _fixed(Lee()),
    "strsbp": _fixed(STRSBP(credit="spike")),
    "stdbp": _fixed(STDBP()),
    **{
        f"superspike-{steepness}": _fixed(SurrogateGradient(partial(_superspike, steepness)))
        for steepness in (10, 25, 100)
    },
    **{
        f"arctan-{narrowness}": _fixed(InThresholds(partial(_arctan, narrowness)))
        for narrowness in (1, 10, 20)
    },
}
RULES |= {name: _fixed(rule()) for name, rule in BY_NAME.items() if name not in RULES}
"""Rules by name, those without options here last; ``bench.known`` describes them."""


def contestant(name: str) -> Contestant:
    """A rule by its name, or a user's own by ``path/to/file.py:name``.

    Raises:
        UnknownRuleError: there is no such rule.
    """
    if name in RULES:
        return RULES[name]
    file = Path(name.rpartition(":")[0])
    return _own(name, file.stat().st_mtime_ns if file.is_file() else 0)


@cache
def _own(name: str, written: int) -> Contestant:
    """A rule from a file last modified at ``written``, so that changes are noticed."""
    if ":" not in name:
        raise UnknownRuleError(
            f"{name!r} is none of {', '.join(RULES)}, nor path/to/file.py:name of a rule of yours"
        )
    try:
        rule = attribute(name, "rule")
    except SourceError as error:
        raise UnknownRuleError(str(error)) from error
    if isinstance(rule, type):
        raise UnknownRuleError(f"{name} is a class; name an instance of it, as in mine = Mine()")
    if not isinstance(rule, Rule):
        raise UnknownRuleError(f"{name} is no tssl_adapters.rules.Rule but {type(rule).__name__}")
    complete = isinstance(rule, SurrogateGradient) and rule.reset_path == "complete"
    reset = complete or isinstance(rule, SmoothTSSLBP)
    return _fixed(rule)._replace(reset=reset, definition=_definition(rule))


def definition(name: str) -> str:
    """What a user's own rule is, the same in every process; empty for all others."""
    return contestant(name).definition


def describe(name: str) -> str:
    """A rule with all of its options; the same in every process."""
    if name in RULES:
        return without_addresses(repr(RULES[name].make(_of_the_layer)))
    return contestant(name).definition


def _of_the_layer(x: Tensor) -> Tensor:
    """A placeholder for the derivative of a layer's own surrogate."""
    return x


def _definition(rule: Rule) -> str:
    """The rule with its options, and a stamp of its class if that is not from this package."""
    said = str(rule)
    if type(rule).__module__.startswith(tssl_adapters.__name__):
        return said
    return f"{said} {crc32(inspect.getsource(type(rule)).encode()):08x}"


def why_not(library: str, rule: str, tau_s: float = 1.0, once: bool = False) -> str | None:
    """Why a library's neurons cannot use a rule, or ``None``; arguments as for :func:`build`.

    ``None`` if the library is not installed.
    """
    try:
        network, chosen = _prepare(library, rule, [nn.Linear(1, 1)], once)
    except ModuleNotFoundError:
        return None  # lets the run be tried, and its error recorded
    except (UnknownRuleError, UnknownNeuronError) as error:
        return str(error)
    if once and contestant(rule).reset:
        return (
            f"it reckons with what a reset takes from the potential, and a reset to {FIRED:g} is "
            "but a way to have a neuron fire once"
        )
    rows = tssl_adapters.inspect(network.model, tau_s=tau_s, rule=chosen)
    return next((row.detail for row in rows if row.status == "refused"), None)


def surrogate(library: str, name: str) -> Surrogate:
    """A library's surrogate by its name here; its default if the name is empty.

    Raises:
        UnknownRuleError: the library lacks it.
    """
    known = architectures.library(library).SURROGATES
    if (name or "native") not in known:
        raise UnknownRuleError(f"{library} has no {name} surrogate; it has {', '.join(known)}")
    return known[name or "native"]


def build(
    library: str, rule: str, tau_s: float, connections: list[nn.Module], once: bool = False
) -> Network:
    """A network of a library's neurons under a rule; the forward pass is the same for every rule.

    The library itself applies its own surrogates where layers emit spikes. Above ``tau_s = 1`` the
    surrogate's derivative is used as a rule of the same PSC-emitting neurons, and for neurons that
    fire once as a rule without the reset: one so large would blow up the gradient.

    Args:
        library: the library's name.
        rule: the rule's name.
        tau_s: synaptic time constant, in steps.
        connections: the module before each layer of neurons.
        once: use non-leaky neurons that fire once.

    Raises:
        UnknownRuleError: the library lacks the surrogate.
        UnknownNeuronError: the library lacks the neurons.
    """
    network, chosen = _prepare(library, rule, connections, once)
    if not (contestant(rule).plain and tau_s == 1.0 and not once):
        wrap(network.model, tau_s=tau_s, rule=chosen)
    return network


def _prepare(
    library: str, rule: str, connections: list[nn.Module], once: bool
) -> tuple[Network, Rule]:
    """A network as the library builds it, and the rule for it."""
    entry = contestant(rule)
    slope = architectures.derivative(surrogate(library, entry.surrogate))
    chosen, name = entry.make(slope), entry.surrogate or "native"
    if not once:
        return architectures.library(library).network(connections, name), chosen
    if isinstance(chosen, SurrogateGradient):
        chosen = replace(chosen, reset_path="none")
    return architectures.library(library).network_once(connections, name), chosen
