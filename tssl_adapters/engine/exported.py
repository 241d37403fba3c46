"""A layer's output with its library's own gradient: where a tracer sees no values and no gradient
is needed, and where the layer is no longer the neuron that was wrapped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tssl_adapters.engine.call.settings import Settings
from tssl_adapters.engine.call.state import known_trace, tag, trace_of
from tssl_adapters.engine.torch.sequence import traces
from tssl_adapters.errors import LostTraceError
from tssl_adapters.neuron import Value
from tssl_adapters.tracing import exporting


def emitted(
    settings: Settings,
    spikes: Tensor,
    before: Tensor | None,
    after: Tensor,
    rest: Sequence[Value],
    *,
    sequence: bool,
) -> Tensor:
    """The post-synaptic current of spikes that the library computed.

    Args:
        settings: the layer's path and tau_s.
        spikes: ``[batch, ...]``, or ``[T, batch, ...]`` for a sequence.
        before: the potential that was passed in, ``None`` if the layer made it.
        after: the potential that the layer returns; it carries the trace.
        rest: resting values of the potential.
        sequence: whether the first dimension is time.

    Raises:
        LostTraceError: the trace of ``before`` is not known.
    """
    if not exporting():
        trace = trace_of(settings, before, rest)
    else:
        trace = None if before is None else known_trace(before)
    if exporting() and before is not None and trace is None:
        raise LostTraceError(
            f"Layer '{settings.path}' (tau_s={settings.tau_s}) cannot be exported from a membrane "
            "potential that it did not return: its post-synaptic current is not among the "
            "program's inputs. Export a loop that starts from the library's own initial state "
            "(None, init_leaky(), reset_net), or wrap at tau_s=1."
        )
    outs = traces(list(spikes.unbind(0)) if sequence else [spikes], trace, settings.tau_s)
    tag(after, (), outs[-1].clone())
    return torch.stack(outs) if sequence else outs[-1]
