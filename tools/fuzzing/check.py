"""Run a case natively, wrapped, and by the recursion, and report where they differ."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import snntorch
import torch
from torch import Tensor

import tssl_adapters
from fuzzing.case import Case
from fuzzing.gradients import compare
from fuzzing.outcome import DiffersError, Failure, Verdict, ending
from fuzzing.script import wrapping
from fuzzing.trial import Ran, names_of, ran
from tssl_adapters.errors import (
    EngineWarning,
    LostLinkWarning,
    LostTraceError,
    NativeGradientWarning,
    UnsupportedConfigError,
    UnsupportedLayerError,
)


def check(case: Case) -> Verdict:
    """Run a case; always returns a verdict."""
    try:
        with _own_instances(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _checked(case)
    except DiffersError as differs:
        return Verdict("failed", differs.failure)
    except Exception as error:
        text = "".join(traceback.format_exception(error)[-3:])
        return Verdict("failed", Failure("the fuzz itself", text, "run(make())"))


@contextmanager
def _own_instances() -> Iterator[None]:
    """Restore the list in which snnTorch keeps every layer ever made."""
    before = snntorch.SpikingNeuron.instances
    snntorch.SpikingNeuron.instances = []
    try:
        yield
    finally:
        snntorch.SpikingNeuron.instances = before


def _checked(case: Case) -> Verdict:
    natively, names = names_of(case), names_of(case)
    try:
        natively["layer"], names["layer"] = natively["make"](), names["make"]()
    except Exception as error:
        return Verdict("the library takes no such setting", notes=[repr(error)])
    theirs = ran(case, natively)
    refusal = _wrap(case, names)
    if refusal is not None:
        return Verdict("refused", notes=[refusal])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = ran(case, names)
    # The layer does not know a state that a model computed, and warns.
    # The same holds for one that SpikingJelly itself converts to the input's dtype.
    start, turned = names["start"].values(), case.layer.library == "spikingjelly"
    dtype = names["drive"].dtype
    computed = any(s.grad_fn is not None or (turned and s.dtype != dtype) for s in start)
    faults = (EngineWarning, NativeGradientWarning, *(() if computed else (LostLinkWarning,)))
    for warned in caught:
        if issubclass(warned.category, faults):
            raise DiffersError("warning", str(warned.message), ending(case, "exception", leaf="x"))
    verdict = _same_errors(case, theirs, ours)
    if verdict is not None:
        return verdict
    _same_values(case, names["layer"], theirs, ours)
    _same_again(case, (natively, theirs), (names, ours))
    if not ours.grads:
        return Verdict("equal, without a gradient")
    outcome = compare(case, names, names_of(case)["make"](), theirs, ours)
    if outcome == "equal" and any(names["layer"]._tssl_settings.loops.values()):
        outcome = "equal, compiled"
    return Verdict(outcome)


def _wrap(case: Case, names: dict[str, Any]) -> str | None:
    """Wrap the layer, or return why it is refused."""
    rule, shown = eval(case.rule, names), ending(case, "refusal")
    rows = tssl_adapters.inspect(names["layer"], rule=rule, tau_s=case.tau_s)
    (row,) = [row for row in rows if row.status in ("wrap", "refused")]
    try:
        exec(wrapping(case), names)
    except UnsupportedLayerError as error:
        if row.status == "refused":
            return row.detail
        raise DiffersError("refusal", f"inspect says wrap, and wrap: {error}", shown) from error
    except Exception as error:
        raise DiffersError("refusal", f"{type(error).__name__}: {error}", shown) from error
    if row.status == "refused":
        raise DiffersError("refusal", f"wrap takes what inspect refuses: {row.detail}", shown)
    return None


def _same_again(
    case: Case, theirs: tuple[dict[str, Any], Ran], ours: tuple[dict[str, Any], Ran]
) -> None:
    """The same loop over the same layer once more, by what its first calls decided. Each is the
    script's names and the first result.
    """
    if case.layer.name == "Lapicque" and case.layer.settings["learn_beta"] == "True":
        return  # one graph of its beta, which the first backward pass frees
    (natively, native), (names, first) = theirs, ours
    again = ran(case, names)
    if again.error is not None and type(ran(case, natively).error) is type(again.error):
        return  # e.g. a state of another dtype, to which snnTorch has reset
    different = {key for key, a in first.seen.items() if not _alike(a, again.seen.get(key))}
    if different:
        anew = ran(case, natively).seen
        different = {key for key in different if _alike(native.seen[key], anew.get(key))}
    # snnTorch resets to states of the last call's shape and dtype, which then round otherwise.
    coarse = case.layer.library == "snntorch" or "torch.float32" in (case.dtype, case.input_dtype)
    if not (case.autocast or "16" in case.dtype + case.input_dtype):
        rounding = 1e-5 if coarse else 1e-12
        grads = first.grads.items()
        different |= {key for key, a in grads if not _alike(a, again.grads.get(key), rounding)}
    for key in different:
        text = f"{key} is another one in the second run of the loop; {again.error!r}"
        raise DiffersError("again", text, ending(case, "again", key=key))


def _alike(a: Tensor | None, b: Tensor | None, rounding: float = 0.0) -> bool:
    if a is None or b is None:
        return a is b
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if _equal(a, b):
        return True
    scale = rounding and rounding * float(a.abs().max())
    return rounding > 0.0 and torch.allclose(a, b, rounding, scale, equal_nan=True)


def _same_errors(case: Case, theirs: Ran, ours: Ran) -> Verdict | None:
    """A verdict if both raise the same error; ``None`` without errors."""
    if theirs.error is None and ours.error is None:
        return None
    if isinstance(ours.error, LostTraceError) and case.tau_s != 1.0 and case.state != "none":
        return Verdict("the trace of a state is lost, and it says so")
    if isinstance(ours.error, UnsupportedConfigError) and "in one call" in str(ours.error):
        return Verdict("the rule wants the sequence in one call, and says so")

    def told(run: Ran) -> str:
        error = run.error
        return f"{run.phase}, {'no error' if error is None else f'{type(error).__name__}: {error}'}"

    if type(theirs.error) is type(ours.error) and theirs.phase == ours.phase:
        return Verdict("the same error as natively", notes=[told(theirs)])
    text = f"natively {told(theirs)}\nwrapped {told(ours)}"
    raise DiffersError("exception", text, ending(case, "exception", leaf=_a_leaf(theirs, ours)))


def _a_leaf(*runs: Ran) -> str:
    return next((code for run in runs for code in run.grads), "x")


def _same_values(case: Case, layer: Any, theirs: Ran, ours: Ran) -> None:
    """Outputs and states must match bit for bit; above tau_s = 1 the output is the spikes' PSC."""
    trace: Tensor | None = None
    factor = getattr(layer, "graded_spikes_factor", torch.ones(()))
    graded = bool(factor != 1.0) or factor.requires_grad
    for key, a in theirs.seen.items():
        b, kind = ours.seen[key], "forward"
        if key[0] == "out" and case.tau_s != 1.0:
            spikes = (a != 0).to(a.dtype) if graded else a
            trace = torch.zeros_like(spikes) if trace is None else trace
            trace = trace + (spikes - trace) / case.tau_s
            a, kind = (trace * factor if graded else trace), "trace"
        if _alike(a, b):
            continue
        text = f"{key}: {a.dtype} {tuple(a.shape)} natively, {b.dtype} {tuple(b.shape)} wrapped"
        if a.shape == b.shape and a.numel():
            text += f", {float((a.detach().double() - b.detach().double()).abs().max()):.3g} off"
        raise DiffersError(kind, text, ending(case, kind, key=key, steps=key[1] + 1))
    alike = theirs.learns == ours.learns
    if ours.learns:  # by a surrogate, or a reset, that the library cuts; an empty graph is no harm
        alike = alike or _cut_off(case) or layer._tssl_settings.rule.resets_membrane(True)
        alike = alike or not any(_sent(grad) for grad in ours.grads.values())
    if not alike and not _apart(case, layer):
        text = f"a gradient natively: {theirs.learns}, wrapped: {ours.learns}"
        raise DiffersError("exception", text, ending(case, "exception", leaf=_a_leaf(theirs, ours)))


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or torch.equal(a.nan_to_num(), b.nan_to_num())


def _sent(grad: Tensor | None) -> bool:
    return grad is not None and bool(grad.any())


def _cut_off(case: Case) -> bool:
    """Whether the library's own surrogate has no gradient."""
    disabled = case.layer.settings.get("surrogate_disable") == "True"
    return disabled or (case.layer.name == "ComplementaryLIFNode" and not case.training)


def _apart(case: Case, layer: Any) -> bool:
    """Whether the output cannot depend on what learns, because time steps are independent."""
    return not layer._tssl_settings.rule.chain and case.layer.name == "RAFNode"
