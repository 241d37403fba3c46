"""Compare a wrapped layer's gradients with those of the recursion."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import oracle_neurons
import torch
from torch import Tensor

from fuzzing.case import Case
from fuzzing.describe import Described, as_array, described
from fuzzing.outcome import DiffersError, ending
from fuzzing.script import pieces
from fuzzing.stated import stated
from fuzzing.trial import Ran, leaves, names_of, numbers
from tssl_adapters import rules

Array = npt.NDArray[np.float64]
ROUNDINGS = 32.0
"""Allowed error of a gradient without a closer look, in roundings of the largest term."""
MOVES = 24
"""How often the closer look randomly perturbs every intermediate value by its rounding error."""
REACH = 8.0
"""Further allowed error, in multiples of the largest effect of these perturbations."""


def compare(case: Case, names: dict[str, Any], native: Any, theirs: Ran, ours: Ran) -> str:
    """Compare the gradients with the recursion's.

    Args:
        case: what was run.
        names: the script's names, with the wrapped ``layer``.
        native: a native layer that has not been run.
        theirs: the result of the library.
        ours: the result of the wrapped layer.

    Returns:
        The outcome of the case.

    Raises:
        DiffersError: they differ by more than rounding errors.
    """
    if not all(bool(torch.isfinite(value.detach()).all()) for value in ours.seen.values()):
        return "equal, not finite"
    shape = names["drive"].shape[1:]
    if any(v.shape != shape for (name, _), v in ours.seen.items() if name == "out"):
        return "equal, of another shape than the input"
    if case.form == "integers" and case.layer.library == "spikingjelly":
        return "equal, of whole numbers"  # the states become integers at every call
    rule: rules.Rule = names["layer"]._tssl_settings.rule
    if rule.continuous or (rule.solves_feedback and case.layer.name == "LIFRecurrent"):
        return "equal, and no oracle for the gradient"
    with np.errstate(all="ignore"):
        known = described(case, native, names["drive"][0].detach())
        recursion = Recursion(case, rule, known, _recorded(case, known, native, ours), ours)
        comparison = _Comparison(case, names, theirs, ours, recursion)
        comparison.states()
        # As it does where a slope of 1/d may have no digit.
        steepest = float(getattr(rule, "max_slope", None) or 0.0)
        if max(recursion.result["largest"], steepest) >= 1.0 / comparison.eps:
            return "equal, and a gradient that explodes"
        try:
            comparison.gradients()
        except DiffersError:
            if not rule.looks_ahead:
                raise
            # Layers that step within a call do not know the second-to-last step.
            recursion.ahead = False
            recursion.result = recursion.run()
            comparison.gradients()
    return "equal"


@dataclass
class Record:
    """The forward pass that the recursion follows.

    Attributes:
        drive: the input of the loop.
        spikes: s, NaN where the layer does not return it.
        out: a, or s.
        states: after every step, as returned by a loop of single steps.
        start: the initial states of the loop.
        kept: which of the given states the layer starts from.
        dtype: of the potential, at least float32: half precision is computed in that.
    """

    drive: Array
    spikes: Array
    out: Array
    states: dict[str, Array]
    start: dict[str, Array]
    kept: dict[str, bool]
    dtype: torch.dtype


def _recorded(case: Case, known: Described, native: Any, ours: Ran) -> Record:
    """The native layer's own steps, one per call."""
    names = names_of(case, stepwise=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
        seen = names["run"](native)
    steps = range(case.steps)
    out = np.stack([as_array(seen["out", t]) for t in steps])
    spikes = (out != 0).astype(np.float64)
    emitted = spikes.copy()
    if case.tau_s != 1.0:
        emitted = np.stack([as_array(ours.seen["out", t]) for t in steps]) / known.factor
    states = {
        name: np.stack([np.broadcast_to(as_array(seen[name, t]), out[0].shape) for t in steps])
        for name in case.layer.states
        if all((name, t) in seen for t in steps)
    }
    start, kept = {}, {}
    for name in case.layer.states:
        moved = known.moved(name, names["start"][name]) if name in names["start"] else None
        kept[name] = moved is not None
        rest = np.broadcast_to(known.rest.get(name, 0.0), out[0].shape)
        start[name] = rest if moved is None else as_array(moved)
    if "rho" in states:  # a refractory neuron does not show its spikes
        before = np.concatenate([start["rho"][None] + 0.0 * out[:1], states["rho"][:-1]])
        spikes[before > 0] = np.nan
    dtype = torch.promote_types(seen["v", case.steps - 1].dtype, torch.float32)
    drive = as_array(names["drive"])
    return Record(drive, spikes, emitted, states, start, kept, dtype)


class Recursion:
    """The oracle on every window; detached states separate the windows."""

    def __init__(
        self, case: Case, rule: rules.Rule, known: Described, record: Record, ours: Ran
    ) -> None:
        self.case, self.rule, self.known, self.record = case, rule, known, record
        self.weights = _weights(case, ours)
        self.ahead = True
        """Whether a rule that looks ahead sees all steps of a call."""
        self.result = self.run()

    def run(self, blur: Callable[..., Array] | None = None) -> dict[str, Any]:
        """The oracle's results, summed over the windows or concatenated.

        Args:
            blur: see the oracle.
        """
        windows = pieces(self.case) if self.case.detach else [(0, self.case.steps)]
        found = [self._window(begin, end, blur) for begin, end in windows]
        total: dict[str, Any] = {"start": found[0]["start"]}
        for kind in ("parameters", "weights", "stepped", "terms"):
            total[kind] = {n: sum(window[kind][n] for window in found) for n in found[0][kind]}
        total["x"] = np.concatenate([window["x"] for window in found])
        total["states"] = {
            n: np.concatenate([window["states"][n] for window in found]) for n in self.record.start
        }
        total["largest"] = max(
            float(np.abs(window[kind]).max(initial=0.0))
            for window in found
            for kind in ("G", "lambda", "mu")
        )
        return total

    def _window(self, begin: int, end: int, blur: Callable[..., Array] | None) -> dict[str, Any]:
        case, record, known = self.case, self.record, self.known
        start = record.start
        if begin:
            start = {n: record.states[n][begin - 1] for n in start}
        last_call = 1
        if case.loop != "steps" and self.ahead:
            last = pieces(case)[-1] if end == case.steps else (begin, end)
            last_call = last[1] - max(last[0], begin)
        seen = oracle_neurons.Seen(
            record.spikes[begin:end],
            record.out[begin:end],
            {n: s[begin:end] for n, s in record.states.items()},
        )
        return oracle_neurons.run(
            known.neuron,
            drive=record.drive[begin:end],
            start=start,
            parameters=known.values,
            grad_out=self._losses("out", begin, end) * known.factor,
            grad_states={n: self._losses(n, begin, end) for n in start},
            tau_s=case.tau_s,
            rule=stated(case, self.rule, known, last_call, end - begin, record.dtype),
            trace=record.out[begin - 1] if begin else 0.0,
            stepped=known.stepped,
            seen=seen,
            **({} if blur is None else {"blur": blur}),
        )

    def _losses(self, name: str, begin: int, end: int) -> Array:
        zero = np.zeros(self.record.spikes.shape[1:])
        return np.stack([self.weights.get((name, t), zero) for t in range(begin, end)])

    def graded(self) -> float:
        """The gradient of the graded-spikes factor."""
        out = self._losses("out", 0, self.case.steps) * self.record.out
        return float(out.sum())


def _weights(case: Case, ours: Ran) -> dict[tuple[str, int], Array]:
    """The factors of each tensor in the script's loss."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for (name, t), value in ours.seen.items():
        wanted = {"out": name == "out", "states": name not in ("out", "spk"), "all": name != "spk"}
        if wanted[case.losses]:
            drawn = torch.randint(-16, 17, value.shape, generator=generator)
            found[name, t] = as_array(drawn) / 8
    return found


class _Comparison:
    """A layer's results compared with the recursion's."""

    def __init__(
        self, case: Case, names: dict[str, Any], theirs: Ran, ours: Ran, recursion: Recursion
    ) -> None:
        self.case, self.names, self.theirs, self.ours = case, names, theirs, ours
        self.recursion = recursion
        dtypes = self._dtypes()
        self.eps = max(torch.finfo(dtype).eps for dtype in dtypes)
        self.tiny = max(torch.finfo(dtype).tiny for dtype in dtypes)

    def _dtypes(self) -> list[torch.dtype]:
        """The dtypes of all values involved, except outputs that are exactly spikes."""
        case, layer = self.case, self.names["layer"]
        factor = getattr(layer, "graded_spikes_factor", None)
        exact = case.tau_s == 1.0 and not case.layer.recurrent and case.layer.name != "Alpha"
        exact = exact and factor is not None and float(factor) == 1.0
        taking = [v for (n, _), v in self.ours.seen.items() if not (exact and n == "out")]
        taking += [self.names["x"], *self.names["start"].values()]
        taking += [eval(code, self.names) for code in leaves(self.names)]
        taking += [*layer.state_dict().values(), *(value for _, value in numbers(layer))]
        found = [value.dtype for value in taking if value.is_floating_point()]
        if case.autocast and case.layer.recurrent:
            found.append(torch.bfloat16)
        if case.layer.library == "norse" and case.state == "none":
            found.append(torch.float32)  # of its initial currents
        return found

    def states(self) -> None:
        """Check the description, by computing each step from the layer's own states.

        Raises:
            DiffersError: it does not describe this layer.
        """
        record, results = self.recursion.record, [self.recursion.result]
        if self.recursion.known.neuron.quantise is not None:
            # A sum halfway between two levels goes to either.
            results += [self.recursion.run(_shift(by * self.eps)) for by in (-2.0, 2.0)]
        for name, theirs in record.states.items():
            computed = (np.broadcast_to(found["states"][name], theirs.shape) for found in results)
            apart = functools.reduce(np.fmin, (np.abs(values - theirs) for values in computed))
            sizes = (float(np.abs(of).max(initial=0.0)) for of in (theirs, record.drive))
            off, size = float(apart.max(initial=0.0)), max(1.0, *sizes)
            if not off <= 256 * max(self.eps, 1e-15) * size:
                text = f"the description's {name} is {off:.3g} off, size {size:.3g}"
                raise DiffersError("description", text, f'print(run(make())["{name}", 0])')

    def gradients(self) -> None:
        """Check the gradient of every leaf.

        Raises:
            DiffersError: one differs.
        """
        for code, gradient in self.ours.grads.items():
            self._gradient(code, gradient)

    def _gradient(self, code: str, gradient: Tensor | None) -> None:
        leaf = eval(code, self.names)
        expected, terms = self._of_leaf(code, leaf, self.recursion.result)
        ours = np.zeros(expected.shape) if gradient is None else as_array(gradient)
        if ours.shape != expected.shape:
            text = f"{code}: shape {ours.shape}, not {expected.shape}"
            raise DiffersError("gradient", text, ending(self.case, "exception", leaf=code))
        if not expected.size:
            return
        eps = ROUNDINGS * max(self.eps, torch.finfo(leaf.dtype).eps)
        if self.case.layer.library == "snntorch" and not leaf.ndim:
            # A scalar times the library's spikes has their precision, float32.
            eps = max(eps, ROUNDINGS * torch.finfo(torch.float32).eps)
        terms = np.nan_to_num(terms)
        size = max(float(terms.max()), float(np.nan_to_num(self.recursion.result["largest"])))
        # Where the recursion itself divides by zero, there is no reference.
        known = np.isfinite(expected) & ~self._alike_without_value(code, ours)
        off = np.where(known, np.abs(ours - expected), 0.0)
        if bool((off <= eps * size + 64 * self.tiny).all()):
            return
        allowed = eps * terms + 64 * self.tiny + REACH * self._spread(code, leaf, expected)
        if bool((off <= allowed).all()):
            return
        beyond = np.where(np.isnan(off), np.inf, off) - allowed
        worst = np.unravel_index(int(np.argmax(beyond)), off.shape)
        index = str([*map(int, worst)]).replace(" ", "") if worst else ""
        found, wanted, bound = (float(of[worst]) for of in (ours, expected, allowed))
        raise DiffersError(
            "gradient",
            f"{code}{index}: {found:.9g}, not {wanted:.9g}; {bound:.3g} may it be off",
            ending(
                self.case,
                "gradient",
                leaf=code,
                index=index,
                expected=wanted,
                allowed=f"{bound:.3g}",
            ),
        )

    def _alike_without_value(self, code: str, ours: Array) -> Array:
        """Where a leaf's gradient is infinite or NaN as the library's own is, e.g. infinity times
        zero; where only the library's is, the recursion has the value.
        """
        native = self.theirs.grads.get(code)
        if native is None:
            return np.zeros(ours.shape, dtype=bool)
        return ~np.isfinite(ours) & ~np.isfinite(as_array(native))

    def _spread(self, code: str, leaf: Tensor, expected: Array) -> Array:
        """How far rounding errors of all intermediate values change a leaf's gradient."""
        spread = np.zeros_like(expected)
        for move in range(MOVES):
            moved = self.recursion.run(_blur(move, self.eps, self.tiny))
            apart = np.abs(self._of_leaf(code, leaf, moved)[0] - expected)
            spread = np.fmax(spread, apart)
        return spread

    def _of_leaf(self, code: str, leaf: Tensor, result: dict[str, Any]) -> tuple[Array, Array]:
        """A leaf's gradient by the recursion, and the magnitude of the terms it sums."""
        case, known, record = self.case, self.recursion.known, self.recursion.record
        none = np.zeros(leaf.shape)
        if code == "x":
            value = self._to_leaf(leaf, result["x"])
            # Alpha's input charges the potential with both signs: cancellation leaves rounding.
            cancelled = result["largest"] if case.layer.name == "Alpha" else 0.0
            return value, np.abs(value) + cancelled
        if code.startswith("start"):
            name = next(n for n in self.names["start"] if code == f"start[{n!r}]")
            value = result["start"][name] if record.kept[name] else none
            return value, np.abs(value)
        if code not in known.leaves:
            return none, none
        kind, name = known.leaves[code]
        if kind == "graded":
            return none + self.recursion.graded(), none + np.abs(record.out).sum()
        if kind == "start":  # from which every neuron starts, unless it is given a state
            value = none if record.kept[name] else none + result["start"][name].sum()
            return value, none + np.abs(result["start"][name]).sum()
        value = np.reshape(result[kind].get(name, none), leaf.shape)
        if (
            code == "layer.p.v_reset"
            and case.layer.facts["inner"] == "IAF"
            and not record.kept["v"]
        ):
            value = value + result["start"]["v"].sum()  # the library starts from this very tensor
        if name == "recurrent_weights" and not known.autapses:
            value = value * (1.0 - np.eye(len(value)))
        terms = none + np.reshape(result["terms"].get(name, np.abs(value)), leaf.shape)
        return value, np.maximum(terms, np.abs(value))

    def _to_leaf(self, leaf: Tensor, grad: Array) -> Array:
        """From the gradient of the loop's input to that of the tensor it is a view of."""
        again, shape = leaf.detach().double().requires_grad_(), (self.case.steps, *self.case.shape)
        view: Callable[[Tensor], Tensor] = {
            "transposed": lambda x: x.transpose(-2, -1),
            "expanded": lambda x: x.expand(shape),
            "strided": lambda x: x[::2],
        }.get(self.case.form, lambda x: x * 1.0)
        (found,) = torch.autograd.grad(view(again), again, torch.tensor(grad).reshape(shape))
        return np.asarray(found.numpy())


def _shift(share: float) -> Callable[..., Array]:
    """Moves values by a share of the terms they sum."""

    def shift(value: Array, *beside: Array) -> Array:
        return value + share * (np.abs(value) + sum(np.abs(other) for other in beside))

    return shift


def _blur(seed: int, eps: float, tiny: float) -> Callable[..., Array]:
    """Perturbs values by up to a rounding error of the terms they sum."""
    generator = np.random.default_rng(seed)

    def blur(value: Array, *beside: Array) -> Array:
        size = np.abs(value) + sum(np.abs(other) for other in beside)
        size = np.where(np.isfinite(value), size, 0.0)
        return value + (eps * size + tiny) * generator.uniform(-1.0, 1.0, np.shape(value))

    return blur
