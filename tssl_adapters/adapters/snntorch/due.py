"""``reset``, which the library leaves on a layer at every step, computed when it is read.

To write it each time, for nobody, took a tenth of a small step.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from tssl_adapters.adapters import compiling, exporting, greater


class Due(NamedTuple):
    """A step's reset before anybody asks for it: whether a potential is above a threshold."""

    potential: Tensor
    threshold: float

    def computed(self) -> Tensor:
        """1 where the reset was due, else 0, ``[batch, ...]``: an ordinary tensor, whatever the
        program does to those that it makes meanwhile.
        """
        potential, threshold = self
        if compiling() or exporting():
            return (potential > threshold).to(potential.dtype)
        with ExitStack() as outside:
            if torch._C._len_torch_dispatch_stack():  # for which some versions import a lot
                outside.enter_context(_disable_current_modes())
            outside.enter_context(torch._C._DisableFuncTorch())
            outside.enter_context(torch.inference_mode(False))
            outside.enter_context(torch.no_grad())
            return greater(potential, threshold)


class LateReset:
    """The attribute: a tensor that is set, or a :class:`Due`, kept in the layer's ``__dict__``.

    Of a potential that was written to as torch does not count it, through ``.data`` or NumPy, the
    reset is what it was before.
    """

    def __get__(self, layer: Any, owner: type) -> Any:
        if layer is None:
            return self
        try:
            found = layer.__dict__["reset"]
        except KeyError:
            raise AttributeError("reset") from None
        if isinstance(found, Due):
            due, found = found, found.computed()
            if layer.__dict__.get("reset") is due:  # no step of another thread came between
                layer.__dict__["reset"] = found
        return found

    def __set__(self, layer: Any, value: Any) -> None:
        layer.__dict__["reset"] = value

    def __delete__(self, layer: Any) -> None:
        try:
            del layer.__dict__["reset"]
        except KeyError:
            raise AttributeError("reset") from None
