"""What a package implements so that :func:`tssl_adapters.wrap` supports a library's layers.

The adapters of snnTorch, SpikingJelly and Norse use this interface and nothing else;
``examples/adapter_for_sinabs`` is a package outside this one, and the page "Adding a library"
explains how to write an adapter.

**How it is found.** A package that adapts to a library ``abc`` has an entry point of the group
``tssl_adapters.adapters``. Its name is the library's top-level module, its value an
:class:`Adapter`::

    [project.entry-points."tssl_adapters.adapters"]
    abc = "adapter_for_abc:ADAPTER"

It is loaded only once a module that defines the library's layers is imported: a model cannot hold
layers of a library that was never imported. What must be known earlier is in a file
``library.json`` beside the ``__init__.py`` of the entry point's module:

- ``layers``: the supported classes by path, and what each takes in one call (steps or sequences),
  for :func:`tssl_adapters.supported`;
- ``tested``: the versions that the adapter's tests passed with, oldest first, and what they were
  run with. A layer of any other version has to pass a trial when it is wrapped;
- ``title`` and ``distribution``: the library's name in prose, and the name it is installed under,
  where these differ from its module's name;
- ``copies``, if other packages contain copies of the library's neurons: ``bases``, the names of
  the classes that these derive from, and ``having``, an attribute that identifies such a class.

**What it consists of.** An :class:`Adapter`, and for every class that it wraps a subclass that
mixes in :class:`Wrapped`. In its ``forward``, decorated with :func:`eager`, the library computes
the values and the engine the gradient: :func:`attach` handles a call of a neuron whose charge is
linear, :func:`attach_smooth` one step of any other neuron. Names that such a class adds begin with
``_tssl_``, so that they cannot collide with the library's.

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
    wrapped_classes,
)
from tssl_adapters.adapters.library import (
    copied,
    defined_by,
    derives_from_copy,
    from_library,
    version_of,
)
from tssl_adapters.adapters.loading import loaded
from tssl_adapters.adapters.opaque import Opaque
from tssl_adapters.adapters.parts import (
    Part,
    Walk,
    as_it_is,
    folded,
    stacked,
    stepped,
    stepped_with_state,
)
from tssl_adapters.elementwise import greater, on_graph_of, operand
from tssl_adapters.engine.attach import Incoming, Result, attach
from tssl_adapters.engine.call.plan import HALF
from tssl_adapters.engine.call.settings import OtherNeuronError, Settings
from tssl_adapters.engine.call.state import (
    hand_over,
    known_trace,
    position_at,
    tag,
    trace_beside,
    trace_of,
    untag,
)
from tssl_adapters.engine.compiled.deciding import Described, compiled_step, may_compile
from tssl_adapters.engine.compiled.form import Stepped
from tssl_adapters.engine.compiled.sequences import Decided, Sequences
from tssl_adapters.engine.compiled.steps import Steps
from tssl_adapters.engine.exported import emitted
from tssl_adapters.engine.filter import synaptic_current
from tssl_adapters.engine.probe import SAME_NEURON, NativeForward, apart
from tssl_adapters.engine.smooth import attach_smooth, held_back, valued
from tssl_adapters.engine.step.cell import Cell, Hold, Tensors, linear_cell
from tssl_adapters.engine.step.written import CannotWriteError
from tssl_adapters.neuron import LinearCharge, Neuron, Reset, Traits, Value, computes
from tssl_adapters.resets import ByFormula, Never, Subtract, SubtractAmount, SubtractEarly, ToValue
from tssl_adapters.rules import Feedback
from tssl_adapters.rules.native import Surrogate, surrogate_of
from tssl_adapters.stateless import computes_torchs, torch_class
from tssl_adapters.tracing import compiling, exporting, untraced

__all__ = [
    "HALF",
    "SAME_NEURON",
    "Adapter",
    "ByFormula",
    "CannotWriteError",
    "Cell",
    "Decided",
    "Described",
    "Feedback",
    "Hold",
    "Incoming",
    "Kind",
    "Kinds",
    "LinearCharge",
    "Mode",
    "NativeForward",
    "Neuron",
    "Never",
    "Opaque",
    "OtherNeuronError",
    "Part",
    "Reset",
    "Result",
    "Sequences",
    "Settings",
    "Stepped",
    "Steps",
    "Subtract",
    "SubtractAmount",
    "SubtractEarly",
    "Surrogate",
    "Tensors",
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
    "compiled_step",
    "compiling",
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
    "known_trace",
    "linear_cell",
    "loaded",
    "may_compile",
    "on_graph_of",
    "operand",
    "position_at",
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
    "wrapped_classes",
]
