"""Every neuron of every library, as a case of the shared suite."""

from __future__ import annotations

from cases import Case
from neurons_norse import CASES as NORSE
from neurons_snntorch import CASES as SNNTORCH
from neurons_spikingjelly import CASES as SPIKINGJELLY

CASES: list[Case] = [*SNNTORCH, *SPIKINGJELLY, *NORSE]
