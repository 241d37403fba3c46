"""The core's layers, with all their settings; tests/neurons_*.py have the further neurons."""

from __future__ import annotations

import layers_norse
import layers_snntorch
import layers_spikingjelly
from cases import Case

CASES: list[Case] = [*layers_snntorch.CASES, *layers_spikingjelly.CASES, *layers_norse.CASES]
