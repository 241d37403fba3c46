"""What a package implements so that :func:`tssl_adapters.wrap` knows another library's layers.

snnTorch, SpikingJelly and Norse are adapted by this interface and nothing else;
``examples/adapter_for_sinabs`` does it from outside, and the page "Adding a library" says how.

**How it is found.** A package that adapts to a library ``abc`` has an entry point of the group
``tssl_adapters.adapters``. Its name is the library's top-level module, its value an
:class:`Adapter`::

    [project.entry-points."tssl_adapters.adapters"]
    abc = "adapter_for_abc:ADAPTER"

It is loaded only once one of the modules that the library's layers live in was imported: a model
cannot hold layers of a library that nobody imported. What has to be known before is in a file
``library.json`` beside the ``__init__.py`` of the entry point's module:

- ``layers``: the supported classes by their paths, and what a call of each brings, for
  :func:`tssl_adapters.supported`;
- ``tested``: versions with which the adapter's tests passed, oldest first, and what these were run
  with. A layer of any other version has to pass a trial when it is wrapped;
- ``title`` and ``distribution``: the library's name as one writes it, and the one it is installed
  under, where these are not that of its module;
- ``copies``, where other packages have copies of the library's neurons: ``bases``, what classes
  these derive from, by name, and an attribute ``having`` that tells them from others.

**What it consists of.** An :class:`Adapter`, and for every class that it wraps a subclass that
mixes in :class:`Wrapped`. Its ``forward``, under :func:`eager`, has the library compute its values
and the engine the gradient: :func:`attach` takes a call of a neuron whose charge is linear,
:func:`attach_smooth` a step of any other. Whatever such a class has of its own begins with
``_tssl_``, so that it cannot collide with the library's names.

:mod:`tssl_adapters.testing` has the tests that every adapter should pass.
"""

from tssl_adapters.adapters.base import (
    Adapter,
    Kind,
    Kinds,
    Mode,
    Wrapped,
    always_fits,
    eager,
    untouched,
)
from tssl_adapters.adapters.library import (
    copied,
    defined_by,
    derives_from_copy,
    from_library,
    version_of,
)
from tssl_adapters.adapters.loading import loaded
from tssl_adapters.adapters.parts import (
    Part,
    Walk,
    as_it_is,
    folded,
    stacked,
    stepped,
    stepped_with_state,
)
from tssl_adapters.elementwise import greater, operand
from tssl_adapters.engine.attach import SAME_NEURON, Incoming, Native, Result, apart, attach
from tssl_adapters.engine.cell import Cell, Tensors
from tssl_adapters.engine.cell_steps import CellSteps, compiled_steps, may_compile
from tssl_adapters.engine.exported import emitted
from tssl_adapters.engine.filter import synaptic_current
from tssl_adapters.engine.plan import HALF
from tssl_adapters.engine.smooth import attach_smooth, held_back, valued
from tssl_adapters.engine.state import (
    OtherNeuronError,
    Settings,
    hand_over,
    tag,
    trace_beside,
    trace_of,
    untag,
)
from tssl_adapters.engine.thin import Thin
from tssl_adapters.engine.written import CannotWriteError
from tssl_adapters.neuron import LinearCharge, Neuron, Reset, Traits, Value, computes
from tssl_adapters.resets import ByFormula, Never, Subtract, SubtractAmount, SubtractEarly, ToValue
from tssl_adapters.rules import Feedback
from tssl_adapters.rules.native import Surrogate, surrogate_of
from tssl_adapters.stateless import computes_torchs, torch_class
from tssl_adapters.tracing import exporting, untraced

__all__ = [
    "HALF",
    "SAME_NEURON",
    "Adapter",
    "ByFormula",
    "CannotWriteError",
    "Cell",
    "CellSteps",
    "Feedback",
    "Incoming",
    "Kind",
    "Kinds",
    "LinearCharge",
    "Mode",
    "Native",
    "Neuron",
    "Never",
    "OtherNeuronError",
    "Part",
    "Reset",
    "Result",
    "Settings",
    "Subtract",
    "SubtractAmount",
    "SubtractEarly",
    "Surrogate",
    "Tensors",
    "Thin",
    "ToValue",
    "Traits",
    "Value",
    "Walk",
    "Wrapped",
    "always_fits",
    "apart",
    "as_it_is",
    "attach",
    "attach_smooth",
    "compiled_steps",
    "computes",
    "computes_torchs",
    "copied",
    "defined_by",
    "derives_from_copy",
    "eager",
    "emitted",
    "exporting",
    "folded",
    "from_library",
    "greater",
    "hand_over",
    "held_back",
    "loaded",
    "may_compile",
    "operand",
    "stacked",
    "stepped",
    "stepped_with_state",
    "surrogate_of",
    "synaptic_current",
    "tag",
    "torch_class",
    "trace_beside",
    "trace_of",
    "untag",
    "untouched",
    "untraced",
    "valued",
    "version_of",
]
