"""Make torchvision importable beside a torch build that its own operators were not built for.

SpikingJelly's model zoo imports torchvision only for a download helper; torchvision in turn
registers shapes for two operators at import, and fails where its binary did not load.
"""

from __future__ import annotations

import torch

_KEPT: list[torch.library.Library] = []


def declare_missing_operators() -> None:
    """Declare ``nms`` and ``qnms``, unless torchvision can be imported as it is."""
    if _KEPT:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
