"""The derivatives of sinabs' surrogates, which are functions of potential and threshold."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sinabs import activation
from torch import Tensor

from tssl_adapters.adapters import Surrogate, surrogate_of
from tssl_adapters.arithmetic import Number, absolute, arithmetic, constant, exp, where


@arithmetic
def _single_exponential(x: Number, width: float, scale: float) -> Number:
    return scale / width * exp(-(absolute(x) / width))


@arithmetic
def _gaussian(x: Number, mu: float, sigma: float, scale: float) -> Number:
    distance = x - mu
    bell = exp(-(distance * distance) / (2.0 * sigma * sigma))
    return bell / (sigma * math.sqrt(2.0 * math.pi)) * scale


@arithmetic
def _multi_gaussian(x: Number, mu: float, sigma: float, h: float, s: float, scale: float) -> Number:
    middle = _gaussian(x, mu, sigma, 1.0)
    sides = _gaussian(x, sigma, s * sigma, 1.0) + _gaussian(x, -sigma, s * sigma, 1.0)
    return ((1.0 + h) * middle - h * sides) * scale


@arithmetic
def _heaviside(x: Number, window: float, threshold: float) -> Number:
    return where(x >= -window, constant(1.0 / threshold, x), 0.0)


def _formula(function: Any, threshold: float) -> Surrogate | None:
    """The derivative in plain arithmetic, if there is one: of h - theta, at this theta."""
    if type(function) is activation.SingleExponential:
        width = threshold * function.grad_width
        return Surrogate(_single_exponential, (width, function.grad_scale))
    if type(function) is activation.Gaussian:
        return Surrogate(_gaussian, (function.mu, function.sigma, function.grad_scale))
    if type(function) is activation.MultiGaussian:
        shape = (function.mu, function.sigma, function.h, function.s, function.grad_scale)
        return Surrogate(_multi_gaussian, shape)
    if type(function) is activation.Heaviside:
        return Surrogate(_heaviside, (function.window, threshold))
    return None


def _asked(distance: Tensor, function: Callable[..., Tensor], threshold: Tensor) -> Tensor:
    """The derivative from the library's own function of h and theta."""
    return function(distance + threshold, threshold)


def spikes(function: Callable[..., Tensor], threshold: Tensor) -> Callable[[Tensor], Tensor]:
    """A spike of h - theta, with a surrogate's gradient."""
    return lambda distance: activation.SingleSpike.apply(distance + threshold, threshold, function)


def surrogate(function: Any, threshold: Tensor) -> Surrogate:
    """The derivative of a surrogate, at a threshold of one number or one for each neuron."""
    threshold = threshold.detach()
    asked = Surrogate(_asked, (function, threshold))
    if threshold.ndim or not threshold.is_cpu:
        return asked
    known = _formula(function, float(threshold.detach()))
    if known is None:
        return asked
    held = surrogate_of(spikes(function, threshold.double()), [known])
    return held if held is known else asked


def own(function: Any, threshold: Tensor) -> tuple[Any, ...]:
    """What a surrogate depends on."""
    one = not threshold.ndim and threshold.is_cpu
    at = float(threshold.detach()) if one else (id(threshold), threshold._version)
    return (*made_of(function), at)


def made_of(function: Any) -> tuple[Any, ...]:
    """The class and settings of one of the library's functions; any other function itself."""
    if type(function).__module__.startswith("sinabs."):
        return (type(function), *vars(function).values())
    return (function,)
