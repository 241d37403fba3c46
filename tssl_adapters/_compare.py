"""Compares a model natively and wrapped, on one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tssl_adapters import _wrap, adapters
from tssl_adapters.adapters import Wrapped
from tssl_adapters.comparing.comparison import Comparison, LayerComparison
from tssl_adapters.comparing.flags import flags
from tssl_adapters.comparing.passes import differences, recorded, run, watched
from tssl_adapters.comparing.records import Potentials, Spikes
from tssl_adapters.comparing.snapshot import Snapshot
from tssl_adapters.engine.call.settings import Settings
from tssl_adapters.errors import NoSpikingLayersError
from tssl_adapters.neuron import Traits
from tssl_adapters.rules import Rule, SmoothTSSLBP


def compare(
    model: nn.Module,
    step: Callable[[Any], Tensor],
    *,
    rule: Rule | str | None = None,
    tau_s: float = 1.0,
    skip: _wrap.Skip = (),
) -> Comparison:
    """Find out why a model does not learn: one batch, natively and wrapped, side by side.

    For each layer it shows the firing rate, how far a potential rises per step, the width of the
    spike's derivative, and the factor of a gradient in the chain over time; for each parameter both
    gradients. It names what is dead, explodes, vanishes, is too narrow, too wide or not finite, and
    says what to do.

    Afterwards the model is as before, even if ``step`` raises: weights, buffers, gradients, hidden
    states, hooks, train flags, the random generators, and how it was wrapped. Optimizers are not
    touched.

    Args:
        model: a model, or one layer, wrapped or not. A wrapped one is compared as it is, with its
            rules, unless ``rule``, ``tau_s`` or ``skip`` is given.
        step: takes the model and returns the loss of one batch, always the same one, as a scalar
            with a graph. It does what a training step does up to the loss, including a reset of
            hidden states, and leaves ``backward`` to the caller. It is called twice, from the same
            random state.
        rule: as for :func:`tssl_adapters.wrap`.
        tau_s: as for :func:`tssl_adapters.wrap`. Above 1 the two forward passes differ.
        skip: as for :func:`tssl_adapters.wrap`. Layers that ``wrap`` would refuse stay native too.

    Returns:
        A table to print, with ``to_dict()`` and ``plot()``.

    Raises:
        TypeError: an argument has the wrong type, or ``step`` does not return a tensor.
        ValueError: ``tau_s`` or the rule is wrong; the loss is not a scalar, has no graph, or was
            differentiated already; or a lazy layer has no weights yet.
        NoSpikingLayersError: there is nothing to wrap.
    """
    _wrap._check_module(model, "compare")
    if not callable(step):
        raise TypeError(
            "tssl_adapters.compare: step must be a function that takes the model and returns the "
            f"loss of one batch, not {_wrap._described(step)}."
        )
    as_it_is = rule is None and tau_s == 1.0 and not skip and _wrap.is_wrapped(model)
    chosen, tau_s = _wrap._checked_rule(rule), _wrap._checked_tau_s(tau_s)
    left_alone = _wrap._checked_skip(skip)
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ValueError(
            f"tssl_adapters.compare: {lazy[0]!r} has no values yet, as its layer is lazy; call the "
            "model once on a batch first."
        )
    before = Snapshot(model)
    try:
        _wrap.unwrap(model)
        found = _wrap._decide(model, left_alone, Settings("", chosen, tau_s, "torch"))
        if not as_it_is:
            _check_something_to_wrap(model, found)
        spiking = [one for one in found if _spikes(one.module)]
        spikes = {one.module: Spikes() for one in spiking}
        with watched(spikes):
            before.rewind()
            native = run(model, step)
        before.restore()
        if not as_it_is:
            _wrap.unwrap(model)
            _wrap._swap(found, chosen, tau_s, "torch")
        own = {m: m._tssl_settings for m in model.modules() if isinstance(m, Wrapped)}
        remarks = _remarks(model, own)
        potentials = recorded(model)
        before.rewind()
        wrapped = run(model, step)
        layers = tuple(_layer(one, spikes[one.module], potentials) for one in spiking)
    finally:
        before.restore()
    parameters = differences(model, native.gradients, wrapped.gradients)
    losses = (native.loss, wrapped.loss)
    smooth = {module for module, one in own.items() if isinstance(one.rule, SmoothTSSLBP)}
    default = {one.report.path for one in spiking if one.module in smooth}
    fixed = all(settings.tau_s == 1.0 for settings in own.values())
    return Comparison(
        tuple(dict.fromkeys(f"{one.rule}, tau_s={one.tau_s:g}" for one in own.values())),
        *losses,
        layers,
        parameters,
        flags(losses, fixed, layers, parameters, remarks, default),
    )


def _spikes(module: nn.Module) -> bool:
    return any(adapter.spiking(module) for adapter in adapters.loaded())


def _check_something_to_wrap(model: nn.Module, found: Sequence[_wrap._Found]) -> None:
    if any(one.report.status == "wrap" for one in found):
        return
    reports = [one.report for one in found if one.report.status != "native"]
    why = "".join(f"\n  - {r.path}: {r.status}, {r.detail}" for r in reports)
    raise NoSpikingLayersError(
        f"tssl_adapters.compare: {type(model).__name__} has no spiking layer to wrap.{why}"
    )


def _remarks(model: nn.Module, own: Mapping[Any, Settings]) -> list[str]:
    """The rules' remarks on the layers that have them."""
    taken: dict[tuple[int, float], tuple[Rule, dict[str, Traits]]] = {}
    for layer, settings in own.items():
        _, layers = taken.setdefault((id(settings.rule), settings.tau_s), (settings.rule, {}))
        layers[settings.path] = type(layer)._tssl_traits(layer)
    return [
        remark
        for (_, tau_s), (rule, layers) in taken.items()
        for remark in _wrap._remarks(model, rule, layers, tau_s)
    ]


def _layer(
    found: _wrap._Found, spikes: Spikes, potentials: dict[nn.Module, Potentials]
) -> LayerComparison:
    report, module = found.report, found.module
    seen = potentials.get(module)
    if seen is None:
        status = "refused" if report.status == "refused" else "skipped"
        return LayerComparison(
            report.path, report.layer, status, report.detail, spikes.rate, spikes.silent
        )
    assert isinstance(module, Wrapped)
    settings = module._tssl_settings
    return LayerComparison(
        report.path,
        report.layer,
        "wrapped",
        f"{settings.rule}, tau_s={settings.tau_s:g}",
        spikes.rate,
        spikes.silent,
        seen.spikes.rate,
        seen.spikes.silent,
        seen.scale,
        seen.rise,
        seen.native_width(module._tssl_spikes(module)),
        seen.width(),
        seen.carry,
    )
