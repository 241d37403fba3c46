"""The installed library's layers, with the neurons of its version."""

from __future__ import annotations

import snntorch

from tssl_adapters.adapters import wrapped_classes
from tssl_adapters.adapters.snntorch.classic import neuron_of
from tssl_adapters.adapters.snntorch.neurons import NEURONS

WRAPPED = wrapped_classes(
    __name__, snntorch, {name: neuron_of(getattr(snntorch, name)) for name in NEURONS}
)
