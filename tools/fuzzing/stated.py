"""The rules in the oracle's terms."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import oracle_neurons
import torch

from fuzzing.case import Case
from fuzzing.describe import Described
from tssl_adapters import rules

Array = npt.NDArray[np.float64]


def stated(
    case: Case,
    rule: rules.Rule,
    known: Described,
    last_call: int,
    steps: float,
    dtype: torch.dtype,
) -> oracle_neurons.Rule:
    """A rule as the oracle implements it, or else by evaluating the rule itself.

    Args:
        case: the case that is run.
        rule: the layer's rule.
        known: the layer's description.
        last_call: number of steps at the end that a rule that looks ahead sees at once.
        steps: the window's length, as far as the layer can know it.
        dtype: the dtype in which the layer evaluates a surrogate.
    """
    if type(rule) is rules.TSSLBP:
        return oracle_neurons.TSSLBP(
            case.tau_s, rule.reset_path, rule.max_slope, rule.fallback_width, rule.fallback
        )
    if type(rule) is rules.SmoothTSSLBP:
        path = rule.reset_path or known.native_path
        return oracle_neurons.SmoothTSSLBP(known.v_reset, steps, path, rule.memory)
    if isinstance(rule, rules.SurrogateGradient | rules.Native):
        native = isinstance(rule, rules.Native)
        derivative: Any = rule.surrogate if native else rule.derivative
        return oracle_neurons.Surrogate(
            lambda z: _rounded(derivative, torch.tensor(z), dtype),
            rule.reset_path or known.native_path,
            rule.chain,
        )
    return _Stated(case, rule, known, last_call)


def _rounded(derivative: Any, z: torch.Tensor, dtype: torch.dtype) -> Array:
    """A surrogate with its own rounding, which is no fault of the layer: 1 - sigmoid(z) may have
    lost all digits. Where it overflows, e.g. float32's exp, its value in float64.
    """
    rounded, exact = derivative(z.to(dtype)).double(), derivative(z)
    return np.asarray(torch.where(rounded.isfinite(), rounded, exact).numpy())


class _Stated(oracle_neurons.Rule):
    """A rule evaluated by its own methods, in float64."""

    def __init__(self, case: Case, rule: rules.Rule, known: Described, last_call: int) -> None:
        self.rule, self.known, self.tau_s = rule, known, case.tau_s
        self.detached = known.native_path == "none"
        self.chain, self.spike_chain = rule.chain, rule.spike_chain
        self.ends_at_spikes, self.counts_reset = rule.ends_at_spikes, rule.counts_reset
        self.cuts_feedback = rule.cuts_feedback
        self.last_call = 1 if case.layer.recurrent and not rule.cuts_feedback else last_call

    def begin(self, steps: list[dict[str, Array]], filtered: Array) -> None:
        self.spikes = spikes = torch.tensor(np.stack([q["s"] for q in steps]))
        self.steps, shape = len(steps), spikes.shape[1:]
        self.filtered = _tensor(filtered, spikes.shape)
        counts = spikes.sum(0)
        # Windows are for linear neurons, whose threshold and decay are constant.
        self.drop = _tensor(steps[0]["theta"] - self.known.v_reset, shape)
        decay = _tensor(steps[0]["F_v"], shape)
        window = rules.Window(counts, (counts > 0).double(), len(steps), decay, self.drop)
        self.window = window._replace(factor=self.rule.factor(window))
        self.later: torch.Tensor | None = None
        self.all: Any = None
        if self.rule.whole:
            self.all = self.rule.cotangent([*self.filtered], [*spikes], self.window, None)
        self.reset_path = self._path(self._step(0, steps[0]))

    def _path(self, step: rules.Step) -> str:
        answer = self.rule.chain_reset(step)
        if answer is None:
            return "none"
        return "complete" if answer.plain == 0.0 else "reference"

    def _step(self, t: int, q: Any) -> rules.Step:
        of = {name: _tensor(q[name], q["h"].shape) for name in _OF_A_STEP}
        gate = self.rule.active_from(self.tau_s) if self.tau_s > 1.0 else None
        active = None if gate is None else (of["active"] >= gate).double()
        last = 1.0 if t == self.steps - 1 else None
        return rules.Step(
            of["s"], of["h"], of["increment"], active, of["removed"], of["theta"],
            self.tau_s, self.detached, self.drop, self.window.active, last, of["F_v"], self.steps,
        )  # fmt: skip

    def told(self, t: int, G: Array) -> Array:
        now = torch.tensor(G)
        if self.all is not None:
            return np.asarray(self.all[t].numpy())
        grads, spikes = [now], [self.spikes[t]]
        if self.later is None and self.last_call > 1:  # extrapolates from the last two
            grads, spikes = [self.filtered[t - 1], now], [*self.spikes[t - 1 : t + 1]]
        found = self.rule.cotangent(grads, spikes, self.window, self.later)[-1]
        self.later = now
        return np.asarray(found.numpy())

    def slope(self, t: int, q: Any) -> Array:
        return np.asarray(self.rule.slope(self._step(t, q)).numpy())

    def instead(self, t: int, q: Any, told: Array) -> tuple[Array, Array] | None:
        fallback = self.rule.emit(self._step(t, q), torch.tensor(told))
        if fallback is None:
            return None
        return fallback.active.numpy() <= 0, np.asarray(fallback.gradient.numpy())


_OF_A_STEP = ("s", "h", "increment", "removed", "theta", "active", "F_v")


def _tensor(value: npt.ArrayLike, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor(np.broadcast_to(value, shape).copy())
