"""What a rule answers that has only a slope, or only one of the other answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import snntorch
import torch
from torch import Tensor

import tssl_adapters
from tssl_adapters import rules
from tssl_adapters.arithmetic import arithmetic


@dataclass(frozen=True)
class OnlySlope(rules.Rule):
    @arithmetic
    def slope(self, step: rules.Step) -> Tensor:
        return rules.TSSLBP().slope(step)


@dataclass(frozen=True)
class WithChain(OnlySlope):
    @arithmetic
    def chain_reset(self, step: rules.Step) -> rules.ChainReset | None:
        return rules.TSSLBP().chain_reset(step)


@dataclass(frozen=True)
class WithFallback(OnlySlope):
    def active_from(self, tau_s: float) -> float | None:
        return rules.TSSLBP().active_from(tau_s)

    @arithmetic
    def emit(self, step: rules.Step, grad_spike: Tensor) -> Any:
        return rules.TSSLBP().emit(step, grad_spike)


@dataclass(frozen=True)
class WithMembrane(OnlySlope):
    @arithmetic
    def membrane_reset(self, step: rules.Step, slope: Tensor) -> Tensor | None:
        return -(slope * step.removed)


def gradient(rule: rules.Rule, engine: str) -> Tensor:
    """Of a loss on a step loop's spikes and potentials."""
    torch.manual_seed(0)
    x = torch.randn(6, 4, 50, dtype=torch.float64).mul_(1.5).requires_grad_()
    beta = torch.tensor(0.8, dtype=torch.float64)
    layer = tssl_adapters.wrap(
        snntorch.Leaky(beta, threshold=torch.tensor(1.0, dtype=torch.float64)),
        rule=rule, tau_s=2.0, engine=engine,
    )  # fmt: skip
    mem = torch.zeros(4, 50, dtype=torch.float64)
    loss: Any = 0.0
    for step in x.unbind(0):
        out, mem = layer(step, mem)
        loss = loss + (out * torch.randn_like(out)).sum() + 0.1 * mem.square().sum()
    (grad,) = torch.autograd.grad(loss, x)
    return grad


TWINS: dict[str, tuple[Callable[[], rules.Rule], rules.Rule]] = {
    "slope": (OnlySlope, rules.TSSLBP(reset_path="none", fallback=False)),
    "chain": (WithChain, rules.TSSLBP(fallback=False)),
    "fallback": (WithFallback, rules.TSSLBP(reset_path="none")),
}


@pytest.mark.parametrize("engine", ["torch", "cpu"])
@pytest.mark.parametrize("name", TWINS)
def test_what_is_not_answered_is_nothing(name: str, engine: str) -> None:
    own, known = TWINS[name]
    torch.testing.assert_close(
        gradient(own(), engine), gradient(known, engine), rtol=1e-12, atol=1e-12
    )


def test_a_chain_of_its_own_is_seen_by_the_answers() -> None:
    """Only False needs to be said, where it is known that nothing splits."""
    assert not OnlySlope().splits_adjoint(False)
    assert not OnlySlope().resets_membrane(False)
    assert all(rule.splits_adjoint(False) for rule in (WithChain(), WithFallback(), WithMembrane()))
    assert WithMembrane().resets_membrane(False)
    assert not WithChain().resets_membrane(False)


class Scaled(OnlySlope):
    """Not declared a dataclass itself, so that its factor is not compared."""

    def __init__(self, factor: float) -> None:
        object.__setattr__(self, "factor", factor)

    @arithmetic
    def slope(self, step: rules.Step) -> Tensor:
        return super().slope(step) * self.factor  # type: ignore[attr-defined, no-any-return]


@dataclass(frozen=True)
class Uncompared(OnlySlope):
    factor: float = field(compare=False)

    @arithmetic
    def slope(self, step: rules.Step) -> Tensor:
        return super().slope(step) * self.factor


@dataclass(frozen=True)
class Compared(OnlySlope):
    factor: float

    @arithmetic
    def slope(self, step: rules.Step) -> Tensor:
        return super().slope(step) * self.factor


@pytest.mark.parametrize(
    ("kind", "compiled"), [(Scaled, False), (Uncompared, False), (Compared, True)]
)
def test_equal_rules_share_code_only_if_they_are_the_same(kind: Any, compiled: bool) -> None:
    assert kind(1.0).compiled is compiled
    for factor in (1.0, 100.0):
        torch.testing.assert_close(
            gradient(kind(factor), "cpu"), gradient(kind(factor), "torch"), rtol=1e-12, atol=1e-12
        )
    assert not torch.allclose(gradient(kind(1.0), "cpu"), gradient(kind(100.0), "cpu"))
