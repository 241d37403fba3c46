"""What `tssl_adapters` raises and warns.

Everything raised by :func:`tssl_adapters.wrap` is raised before the model was changed. Wrong
arguments (not a module, a ``tau_s`` below 1, an unknown rule name) are plain ``TypeError`` and
``ValueError``.
"""

from __future__ import annotations


class TSSLAdaptersError(Exception):
    """Base of every error of this package."""


class UnsupportedLayerError(TSSLAdaptersError):
    """The model has spiking layers that cannot be wrapped; the message lists every one."""


class UnsupportedConfigError(UnsupportedLayerError):
    """A layer of a supported class has a setting that cannot be wrapped."""


class LibraryVersionError(TSSLAdaptersError):
    """The installed version of a library does not behave as the adapter expects."""


class AdapterError(TSSLAdaptersError):
    """What is installed as the adapter of a library is none."""


class AlreadyWrappedError(TSSLAdaptersError):
    """The model, or a layer of it, is wrapped already."""


class NoSpikingLayersError(TSSLAdaptersError):
    """There is no layer to wrap."""


class EngineNotAvailableError(TSSLAdaptersError):
    """An engine was asked for, and what it needs is not installed."""


class NotSequentialError(TSSLAdaptersError):
    """Layer by layer over a sequence a model would compute something else than step by step."""


class LostTraceError(TSSLAdaptersError):
    """At ``tau_s > 1`` a membrane state came in whose post-synaptic current is not known."""


class EngineWarning(UserWarning):
    """A compiled loop did not give what torch gives, on a trial; torch computes in its place."""


class NativeGradientWarning(UserWarning):
    """A layer is not the neuron that it was wrapped as: it ran with its library's own gradient."""


class LostLinkWarning(UserWarning):
    """A state came in with a graph but without the spike-time chain; the plain adjoint is used."""


class RuleWarning(UserWarning):
    """Something that a rule silently does not get along with: the model, or the loss."""


class UntestedVersionWarning(UserWarning):
    """A library's version is none of those that were tested; a trial found nothing wrong."""
