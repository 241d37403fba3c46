"""What a rule's backward pass costs, counted rather than timed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rule_layers import leaky
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tssl_adapters import rules
from tssl_adapters.engine.attach import attach
from tssl_adapters.engine.call.settings import Settings

FURTHER = [
    rules.Lee(),
    rules.Lee(gate="active", normalise=True),
    rules.STRSBP(),
    rules.STRSBP(self_effect="regular", silent="zero"),
    rules.STRSBP(credit="spike"),
    rules.STDBP(strict=False),
]


class Written(TorchDispatchMode):
    """Counts the values that operations make or change."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view:
            self.values += out.numel()
        return out


def values_written(rule: rules.Rule, sequence: bool) -> int:
    """In the backward pass of one layer, over 50 steps."""
    x = torch.rand(50, 8, 40, generator=torch.Generator().manual_seed(0)).requires_grad_()
    settings, neuron = Settings("layer", rule, 1.0), leaky(0.9, 1.0, "zero")
    state, outs = torch.zeros(8, 40), []
    for part in [x] if sequence else x:
        result = attach(settings, neuron, part, state, None, None, sequence=sequence)
        state = result.state
        outs.append(result.out)
    out = outs[0] if sequence else torch.stack(outs)
    grad = torch.rand(out.shape, generator=torch.Generator().manual_seed(1))
    with Written() as written:
        out.backward(grad)
    return written.values


@pytest.mark.parametrize("sequence", [True, False], ids=["sequence", "steps"])
@pytest.mark.parametrize("rule", FURTHER, ids=str)
def test_no_more_than_tsslbp(rule: rules.Rule, sequence: bool) -> None:
    if rule.whole and not sequence:
        pytest.skip("for whole sequences")
    assert values_written(rule, sequence) <= values_written(rules.TSSLBP(), sequence)
