"""``KLIFNode``: a charge that is scaled, and a reset that may scale it back."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tssl_adapters.adapters import (
    NativeForward,
    Reset,
    Result,
    Subtract,
    ToValue,
    attach_smooth,
    hand_over,
    valued,
)
from tssl_adapters.adapters.spikingjelly.smooth import SmoothNode, States


class KLIF(SmoothNode):
    """The charge and the reset of ``KLIFNode``.

    The neuron's potential is relu(k h), which is compared with the threshold. With ``scale_reset``
    the library carries that potential divided by k, so it is multiplied by k as it comes in.
    """

    _tssl_nonlinear = "its charge is rectified"
    _tssl_single = True

    def _tssl_attach(
        self: Any, x: Tensor, states: States, trace: Tensor | None
    ) -> tuple[Result, States]:
        if not self.scale_reset:
            return SmoothNode._tssl_attach(self, x, states, trace)
        (v,), k = states, self.k
        fixed = k.detach()  # v is what the library carries: k acts on the charge, at a given v
        spike, (after,) = self._tssl_values(x, states)

        def charged(x: Tensor, potential: Tensor) -> Tensor:
            h: Tensor = self._tssl_charged(x, potential / fixed, [])
            return h

        def probe(x: Tensor, potential: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            spike, (after,) = self._tssl_values(x, (potential / k,))
            return charged(x, potential), spike, after * k

        result = attach_smooth(
            self._tssl_settings,
            lambda potential: charged(x, potential),
            v * fixed,
            trace,
            NativeForward(x, lambda: (spike, after * k), probe),
            reset=self._tssl_scaled_reset(v),
            threshold=self.v_threshold,
            strict=False,
            detached=self._tssl_detached(),
            carrier=v,
        )
        by_k = -k * (result.state / fixed).detach()
        return result, (hand_over(result.state, valued(after, result.state / k), by_k),)

    @classmethod
    def _tssl_written(cls, layer: Any) -> bool:
        return not layer.scale_reset  # else its state is not the potential

    def _tssl_reset_of(self: Any, others: list[Any]) -> Reset:
        return Subtract() if self.v_reset is None else ToValue(self.v_reset)

    def _tssl_scaled_reset(self: Any, v: Tensor) -> Reset:
        """What a spike does to k times the potential."""
        if self.v_reset is not None:
            return ToValue(self.v_reset * self.k if self.v_reset else self.v_reset)
        # The library takes theta / k, which it rounds to the precision of k, not of v.
        k = self.k.detach()
        return Subtract().taking((self.v_threshold / k).to(v) * k)
