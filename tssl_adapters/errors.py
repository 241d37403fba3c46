"""The errors and warnings of `tssl_adapters`.

:func:`tssl_adapters.wrap` raises only before it changes the model. Wrong arguments (not a module, a
``tau_s`` below 1, an unknown rule name) raise plain ``TypeError`` and ``ValueError``.
"""

from __future__ import annotations


class TSSLAdaptersError(Exception):
    """Base of every error of this package."""


class UnsupportedLayerError(TSSLAdaptersError):
    """The model has spiking layers that cannot be wrapped; the message lists every one."""


class UnsupportedConfigError(UnsupportedLayerError):
    """A layer of a supported class cannot be wrapped with its settings."""


class LibraryVersionError(TSSLAdaptersError):
    """The installed version of a library does not behave as the adapter expects."""


class AdapterError(TSSLAdaptersError):
    """What is installed as a library's adapter is not an adapter."""


class AlreadyWrappedError(TSSLAdaptersError):
    """The model, or a layer of it, is already wrapped."""


class NoSpikingLayersError(TSSLAdaptersError):
    """The model has no layer to wrap."""


class EngineNotAvailableError(TSSLAdaptersError):
    """What the chosen engine needs is not installed."""


class NotSequentialError(TSSLAdaptersError):
    """Run layer by layer, the model would not compute what it computes step by step."""


class LostTraceError(TSSLAdaptersError):
    """At ``tau_s > 1`` a layer got a membrane state whose post-synaptic current is lost."""


class EngineWarning(UserWarning):
    """A compiled loop failed its trial against torch, which computes in its place."""


class NativeGradientWarning(UserWarning):
    """A layer is no longer the neuron that was wrapped; it ran with its library's own gradient."""


class LostLinkWarning(UserWarning):
    """A state has lost what goes with it: its spike-time chain, in whose place the membrane's
    ordinary adjoint goes on, or its place in time.
    """


class RuleWarning(UserWarning):
    """Something in the model or the loss breaks a rule without raising an error."""


class UntestedVersionWarning(UserWarning):
    """A library's version was not tested; a trial of its layers found nothing wrong."""
