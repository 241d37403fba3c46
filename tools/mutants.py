"""The faults that tools/mutate.py puts into the package: each one that a person could make.

Symbols in the names are those of tssl_adapters/engine/recursion.py.
"""

from __future__ import annotations

from typing import NamedTuple

PACKAGE = "tssl_adapters"
ENGINE = "tests/test_engine.py"
IDENTITY = "tests/test_native_identity.py"
ORACLE = "tests/test_oracle_layers.py"
GOLDEN = "tests/test_golden.py"
STATES = "tests/test_states.py"
FORWARD = "tests/test_forward.py"
LOSSES = "tests/test_losses.py"
WRAPS = "tests/test_wrap.py"
ERRORS = "tests/test_errors.py"
IMPORTS = "tests/test_imports.py"
GAPS = "tests/test_gaps.py"
SMOOTH_TESTS = "tests/test_smooth.py"
REGISTER = "tests/test_register.py"
NEURONS = "tests/test_neurons.py::test_native_gradient"
VERSIONS_TESTS = "tests/test_versions.py"
NEURONS_SNNTORCH = "tests/test_neurons_snntorch.py"


class Change(NamedTuple):
    """One edit of a source file; ``old`` must occur exactly ``count`` times."""

    file: str
    old: str
    new: str
    count: int = 1


class Mutant(NamedTuple):
    """A fault: what was got wrong, how, and the tests that should catch it, fastest first."""

    name: str
    changes: tuple[Change, ...]
    tests: tuple[str, ...]


def change(file: str, old: str, new: str, count: int = 1) -> Change:
    """Change a file of the package."""
    return Change(f"{PACKAGE}/{file}", old, new, count)


def mutant(name: str, file: str, old: str, new: str, *tests: str, count: int = 1) -> Mutant:
    """Name a fault of one edit."""
    return Mutant(name, (change(file, old, new, count),), tests)


ELEMENTWISE = "elementwise.py"
RECURSION = "engine/recursion.py"
SEQUENCE = "engine/sequence.py"
STEP = "engine/step.py"
STATE = "engine/state.py"
WINDOW = "engine/window.py"
LEE = "rules/lee.py"
STDBP = "rules/stdbp.py"
STRSBP = "rules/strsbp.py"
RULE_STRSBP = "tests/test_rule_strsbp.py"
RULE_LOSSES = "tests/test_rule_losses.py"
RULE_COSTS = "tests/test_rule_costs.py"
RULE_WARNINGS = "tests/test_rule_warnings.py"
RULE_RECURRENT = "tests/test_rule_recurrent.py"
RULE_LEE = "tests/test_rule_lee.py"
RULE_STDBP = "tests/test_rule_stdbp.py"
MULTI = "tests/test_multi_step.py"
MULTI_NATIVE = f"{MULTI}::test_native_models_give_what_the_loop_gives"
MULTI_LEAKY = f"{MULTI}::test_any_stack_of_leaky_layers"
MULTI_STATELESS = f"{MULTI}::test_layers_without_a_state"
MULTI_ERRORS = "tests/test_multi_step_errors.py"
REFUSALS = "tests/test_rule_refusals.py"
ATTACH = "engine/attach.py"
PLAN = "engine/plan.py"
FILTER = "engine/filter.py"
REFERENCE = "engine/reference.py"
NAIVE = "engine/naive.py"
TSSLBP = "rules/tsslbp.py"
ORDINARY = "rules/ordinary.py"
SNNTORCH = "adapters/snntorch/layer.py"
SNNTORCH_NEURONS = "adapters/snntorch/neurons.py"
SNNTORCH_TABLE = "adapters/snntorch/__init__.py"
SPIKINGJELLY = "adapters/spikingjelly/linear.py"
NODE = "adapters/spikingjelly/node.py"
NORSE = "adapters/norse/linear.py"
NORSE_ADAPTER = "adapters/norse/__init__.py"
NORSE_VALUES = "adapters/norse/values.py"
NORSE_NEURONS = "adapters/norse/neurons.py"
NORSE_RUN = "adapters/norse/run.py"
NORSE_LAYERS = "adapters/norse/layers.py"
SMOOTH = "engine/smooth.py"
ADAPTERS = "adapters/__init__.py"
BASE = "adapters/base.py"
WRAP = "_wrap.py"
VERSIONS = "versions.py"
REGISTRY_FILE = "registry.py"
LOSS = "losses.py"

ADJOINTS = (
    mutant(
        "mu is dropped at silent steps",
        RECURSION,
        "        total = emitted if membrane is None else emitted + membrane\n",
        "        total = emitted if membrane is None else emitted + membrane\n"
        "        if membrane is not None and fallback is not None:\n"
        "            total = torch.where(fallback.where, emitted, total)\n",
        ENGINE,
    ),
    mutant(
        "lambda, not e, goes to the drive",
        RECURSION,
        "        gain = neuron.charge.gain\n",
        "        gain = neuron.charge.gain\n"
        "        total = chain * 1.0 if membrane is None else chain + membrane\n",
        ENGINE,
    ),
    mutant(
        "lambda, not e, goes to decay, gain and offset",
        RECURSION,
        "self._charge_sums(moment, total)",
        "self._charge_sums(moment, chain if membrane is None else chain + membrane)",
        ENGINE,
    ),
    mutant(
        "e, not the full adjoint, goes to the threshold within the charge",
        RECURSION,
        "held = membrane if rule.counts_reset else _add(chain, membrane)",
        "held = membrane if rule.counts_reset else total",
        ENGINE,
    ),
    mutant(
        "the chain carries the fallback",
        RECURSION,
        "self._carry(moment, chain if rule.spike_chain else None, membrane)",
        "self._carry(moment, emitted if rule.spike_chain else None, membrane)",
        ENGINE,
    ),
    mutant(
        "the chain carries mu as well as lambda",
        RECURSION,
        "self._carry(moment, chain if rule.spike_chain else None, membrane)",
        "self._carry(moment, _add(chain, membrane) if rule.spike_chain else None, membrane)",
        ENGINE,
    ),
    mutant(
        "R of a reset to a value is the threshold",
        RECURSION,
        "return charged if _is(value, 0.0) else charged - value",
        "return neuron.threshold",
        ENGINE,
    ),
    mutant(
        "R of a reset to a value forgets the value",
        RECURSION,
        "return charged if _is(value, 0.0) else charged - value",
        "return charged",
        ENGINE,
    ),
    mutant(
        "R of a delayed subtraction is theta, not theta/beta",
        RECURSION,
        "return neuron.amount / neuron.charge.decay if late else neuron.amount",
        "return neuron.amount",
        ENGINE,
    ),
    mutant(
        "R of an immediate subtraction is theta/beta",
        RECURSION,
        "return neuron.amount / neuron.charge.decay if late else neuron.amount",
        "return neuron.amount / neuron.charge.decay",
        ENGINE,
    ),
    mutant(
        "D takes s where s - r was reset",
        RECURSION,
        "return moment.spike - moment.before",
        "return moment.spike",
        ENGINE,
    ),
    mutant(
        "D of a reset by subtraction is 1 - s",
        RECURSION,
        "    if not isinstance(neuron.reset, ToValue):\n        return None",
        "    if not isinstance(neuron.reset, (ToValue, Subtract)):\n        return None",
        ENGINE,
    ),
    mutant(
        "F_v ignores r where the charge resets",
        RECURSION,
        "            decay = decay * (1 - moment.before)\n",
        "            decay = decay * 1.0\n",
        ENGINE,
    ),
    mutant(
        "F_v is that of step t, not t+1",
        RECURSION,
        "        neuron, rule, carried = self.neuron, self.rule, self.carried\n",
        "        neuron, rule, carried = self.neuron, self.rule, self.carried\n"
        "        own = neuron.timing == 'both' and isinstance(neuron.reset, ToValue)\n"
        "        if own and carried.chain is not None:\n"
        "            f_v = neuron.charge.decay * (1 - moment.before)\n"
        "            carried = carried._replace(decayed_chain=carried.chain * f_v)\n"
        "            self.carried = carried\n",
        ENGINE,
    ),
    mutant(
        "the state that comes in is taken for one after its delayed reset",
        RECURSION,
        "            total = total * (1 - first.before)\n",
        "            total = total * 1.0\n",
        ENGINE,
    ),
    mutant(
        "dh/dbeta is the state before the reset within the charge",
        RECURSION,
        "        return (1 - moment.before) * moment.state\n    if moment.before is not None",
        "        return moment.state\n    if moment.before is not None",
        ENGINE,
    ),
    mutant(
        "a membrane loss on h passes through the reset (du/dh)",
        RECURSION,
        "        return _add(grad_state, through) if delayed else through",
        "        if delayed and grad_state is not None and taken is not None:\n"
        "            grad_state = grad_state * (1 - taken)\n"
        "        return _add(grad_state, through) if delayed else through",
        ENGINE,
    ),
    mutant(
        "a membrane loss on u does not pass through the reset (du/dh)",
        RECURSION,
        "        return _add(grad_state, through) if delayed else through",
        "        if not delayed and grad_state is not None and taken is not None:\n"
        "            through = through + grad_state * taken\n"
        "        return _add(grad_state, through) if delayed else through",
        ENGINE,
    ),
    mutant(
        "the membrane's adjoint does not go through the reset's spike",
        RECURSION,
        "            through = self._plus(through, membrane_reset, reset_adjoint)\n",
        "            through = through * 1.0\n",
        IDENTITY,
    ),
)

PARAMETERS = (
    mutant(
        "p forgets what comes through the reset",
        RECURSION,
        "slope, arriving, chain, membrane, membrane_reset, reset_adjoint, fallback, total",
        "slope, grad_spike, chain, membrane, membrane_reset, reset_adjoint, fallback, total",
        ENGINE,
    ),
    mutant(
        "p takes lambda where the neuron is silent",
        RECURSION,
        "            firing = self._chosen(found.fallback, firing)",
        "            firing = firing + 0.0",
        ENGINE,
    ),
    mutant(
        "p forgets the membrane's reset",
        RECURSION,
        "return self._plus(firing, found.membrane_reset, found.reset_adjoint)",
        "return firing + 0.0",
        ENGINE,
    ),
    mutant(
        "p has c where the library returns h",
        RECURSION,
        "slope, arriving, chain, membrane, membrane_reset, reset_adjoint, fallback, total",
        "slope, arriving, chain, membrane, membrane_reset,\n"
        "            _add(grad_state, carried.decayed_membrane), fallback, total",
        ENGINE,
    ),
    mutant(
        "the threshold that is subtracted gets nothing",
        RECURSION,
        "total = torch.addcmul(total, due, after, value=-1)",
        "total = total + 0.0",
        ENGINE,
    ),
    mutant(
        "the threshold within a delayed reset gets nothing",
        RECURSION,
        "total = torch.addcmul(total, before, adjoint, value=-1)",
        "total = total + 0.0",
        ENGINE,
    ),
    mutant(
        "what a spike takes ignores a loss on the membrane",
        RECURSION,
        "            after = _add(grad_state, after)\n        due",
        "            after = _add(None, after)\n        due",
        ENGINE,
    ),
    mutant(
        "the reset value gets no gradient",
        RECURSION,
        "if self.needs[RESET_VALUE] and after is not None:",
        "if self.needs[RESET_VALUE] and after is None:",
        ENGINE,
    ),
    mutant(
        "a vector parameter gets the sum over all its neurons",
        RECURSION,
        "terms.sum_to_size(value.shape)",
        "terms.sum().expand(value.shape)",
        ENGINE,
    ),
    mutant(
        "the gain's gradient is not summed over time",
        RECURSION,
        "self.sums[index] = _add(self.sums[index], terms",
        "self.sums[index] = _add(self.sums[index] if index != GAIN else None, terms",
        ENGINE,
    ),
)

RULES = (
    mutant(
        "the reference reset term goes to mu as well",
        TSSLBP,
        'return -(slope * step.removed) if self.reset_path == "complete" else None',
        'return -(slope * step.removed) if self.reset_path != "none" else None',
        ENGINE,
        ORACLE,
    ),
    mutant(
        "the reference reset term goes to mu with its own sign",
        TSSLBP,
        'return -(slope * step.removed) if self.reset_path == "complete" else None',
        'signs = {"complete": -1.0, "reference": 1.0}\n'
        "        sign = signs.get(self.reset_path)\n"
        "        return None if sign is None else sign * (slope * step.removed)",
        ORACLE,
    ),
    mutant(
        "reset_path is ignored",
        TSSLBP,
        'plain = 1.0 if self.reset_path == "reference" else 0.0',
        "plain = 1.0",
        ORACLE,
    ),
    mutant(
        "reset_path 'none' is taken for 'complete'",
        TSSLBP,
        '        if self.reset_path == "none":\n            return None\n',
        "",
        ORACLE,
    ),
    mutant(
        "the reference reset term has the other sign",
        TSSLBP,
        "return ChainReset(step.removed, plain, -1.0)",
        "return ChainReset(step.removed, -plain, 1.0 if plain else -1.0)",
        ORACLE,
    ),
    mutant(
        "the reference reset term follows the whole potential, not the leak",
        TSSLBP,
        "return ChainReset(step.removed, plain, -1.0)",
        "return ChainReset(step.removed, plain, plain - 1.0)",
        ORACLE,
    ),
    mutant(
        "the reference reset term has beta for 1 - beta",
        TSSLBP,
        "return ChainReset(step.removed, plain, -1.0)",
        "return ChainReset(step.removed, 0.0, 1.0 if plain else -1.0)",
        ORACLE,
    ),
    mutant(
        "the gate is 1/4 whatever tau_s",
        TSSLBP,
        "return 1.0 / (4.0 * tau_s) if",
        "return 1.0 / 4.0 if",
        GOLDEN,
    ),
    mutant(
        "the gate is tau_s/4",
        TSSLBP,
        "return 1.0 / (4.0 * tau_s) if",
        "return tau_s / 4.0 if",
        GOLDEN,
    ),
    mutant(
        "the gate is <=",
        SEQUENCE,
        "at_least(trace, gate)",
        "(trace > gate).to(trace.dtype)",
        GAPS,
    ),
    mutant(
        "the gate is 'no spike at t' at every tau_s",
        TSSLBP,
        "step.spike if step.active is None else step.active",
        "step.spike",
        GOLDEN,
    ),
    mutant(
        "fallback_width is ignored",
        TSSLBP,
        "operand(1.0 / self.fallback_width, step.charged)",
        "operand(1.0 / 0.2, step.charged)",
        ORACLE,
    ),
    mutant(
        "the fallback is not divided by its width",
        TSSLBP,
        "sigmoid_backward.default(grad_spike, sigmoid).mul_(scale)",
        "sigmoid_backward.default(grad_spike, sigmoid)",
        GOLDEN,
    ),
    mutant(
        "the fallback's exponent is not clipped",
        TSSLBP,
        "distance.mul_(scale).clamp_(-8.0, 8.0).sigmoid_()",
        "distance.mul_(scale).sigmoid_()",
        GOLDEN,
    ),
    mutant(
        "the fallback's exponent is clipped at max_slope",
        TSSLBP,
        "distance.mul_(scale).clamp_(-8.0, 8.0).sigmoid_()",
        "distance.mul_(scale).clamp_(-self.max_slope, self.max_slope).sigmoid_()",
        ORACLE,
    ),
    mutant(
        "fallback=False is ignored",
        TSSLBP,
        "if not self.fallback:",
        "if not self.fallback_width:",
        ORACLE,
    ),
    mutant(
        "1/d has no upper bound",
        TSSLBP,
        ".clamp_(0.0, self.max_slope)",
        ".clamp_(min=0.0)",
        GOLDEN,
    ),
    mutant(
        "1/d has no lower bound",
        TSSLBP,
        ".clamp_(0.0, self.max_slope)",
        ".clamp_(max=self.max_slope)",
        ORACLE,
    ),
    mutant(
        "max_slope is ignored",
        TSSLBP,
        ".clamp_(0.0, self.max_slope)",
        ".clamp_(0.0, 8.0)",
        ORACLE,
    ),
    mutant(
        "phi acts without a spike",
        TSSLBP,
        ".clamp_(0.0, self.max_slope).mul_(step.spike)",
        ".clamp_(0.0, self.max_slope)",
        GOLDEN,
    ),
    mutant(
        "d of a delayed subtraction forgets the reset",
        RECURSION,
        "        return moment.charged - (moment.state - moment.before * removed)\n",
        "        return moment.charged - moment.state\n",
        GAPS,
    ),
    mutant(
        "d of a delayed subtraction forgets the reset where theta learns",
        RECURSION,
        "return moment.charged - torch.addcmul(moment.state, moment.before, removed, value=-1)",
        "return moment.charged - moment.state",
        ENGINE,
    ),
    mutant(
        "d of a delayed reset to zero forgets the reset",
        RECURSION,
        "    return moment.charged - _held(neuron, moment)",
        "    return moment.charged - moment.state",
        GOLDEN,
    ),
    mutant(
        "d of a doubled reset is taken against the state after it",
        RECURSION,
        '    if neuron.timing != "delayed":\n        return moment.charged - moment.state',
        '    if neuron.timing != "delayed":\n        return moment.charged - _held(neuron, moment)',
        ORACLE,
    ),
    mutant(
        "SurrogateGradient takes every reset for detached",
        ORDINARY,
        'return self.reset_path == "complete" or (self.reset_path is None and not detached)',
        'return self.reset_path == "complete"',
        IDENTITY,
    ),
    mutant(
        "SurrogateGradient takes no reset for detached",
        ORDINARY,
        'return self.reset_path == "complete" or (self.reset_path is None and not detached)',
        'return self.reset_path != "none"',
        IDENTITY,
    ),
    mutant(
        "SurrogateGradient's chain is on mu, not on lambda",
        ORDINARY,
        "return ChainReset(step.removed, 0.0, -1.0)",
        "return None",
        IDENTITY,
    ),
)

PSC = (
    mutant(
        "G of a sequence lacks 1/tau_s",
        SEQUENCE,
        "yield grad_trace, grad_trace if tau_s == 1.0 else grad_trace / tau_s",
        "yield grad_trace, grad_trace",
        GOLDEN,
    ),
    mutant(
        "G of a step lacks 1/tau_s",
        STEP,
        "grad_spike = grad_out if plan.tau_s == 1.0 else grad_out / plan.tau_s",
        "grad_spike = grad_out",
        GOLDEN,
    ),
    mutant(
        "the PSC's adjoint of a sequence does not decay",
        SEQUENCE,
        "    later = later * (1.0 - 1.0 / tau_s)\n",
        "",
        GOLDEN,
    ),
    mutant(
        "the trace that came into a sequence gets no gradient",
        SEQUENCE,
        "None if trace is None else reduced(grad_trace, trace),",
        "None,",
        ENGINE,
    ),
    mutant(
        "the trace that came into a sequence gets an undecayed gradient",
        SEQUENCE,
        "            grad_trace = grad_trace * (1.0 - 1.0 / plan.tau_s)\n",
        "            grad_trace = grad_trace * 1.0\n",
        ENGINE,
    ),
    mutant(
        "the trace that came into a step gets no gradient",
        STEP,
        "None if ctx.trace is None else reduced(grad_out * (1.0 - 1.0 / plan.tau_s), ctx.trace),",
        "None,",
        GOLDEN,
    ),
    mutant(
        "the gate of a step reads the trace before the spike",
        STEP,
        "activity(plan.rule, out.to(working_dtype(out)), plan.tau_s)",
        "activity(plan.rule, torch.zeros_like(out) if trace is None else trace, plan.tau_s)",
        GOLDEN,
    ),
    mutant(
        "a step's backward computes spikes that the library rounded otherwise",
        STEP,
        "fires(neuron, charged) if known is None else known.to(charged.dtype)",
        "fires(neuron, charged)",
        GAPS,
    ),
    mutant(
        "a step's backward takes the reset that is due from the new potential",
        STEP,
        "else fires(neuron, state)",
        "else fires(neuron, charged)",
        ENGINE,
    ),
    mutant(
        "a number as threshold: > is >=",
        ELEMENTWISE,
        "left.clone().gt_(operand(right, left))",
        "left.clone().ge_(operand(right, left))",
        FORWARD,
    ),
    mutant(
        "a number as threshold: >= is >",
        ELEMENTWISE,
        "left.clone().ge_(operand(right, left))",
        "left.clone().gt_(operand(right, left))",
        GAPS,
    ),
    mutant(
        "a vector as threshold: > is >=",
        ELEMENTWISE,
        "(left > right).to(left.dtype)",
        "(left >= right).to(left.dtype)",
        FORWARD,
    ),
    mutant(
        "a vector as threshold: >= is >",
        ELEMENTWISE,
        "(left >= right).to(left.dtype)",
        "(left > right).to(left.dtype)",
        GAPS,
    ),
    mutant(
        "a comparison writes over the potential",
        ELEMENTWISE,
        "left.clone().gt_(operand(right, left))",
        "left.gt_(operand(right, left))",
        ENGINE,
    ),
    mutant(
        "the gain is applied in place to a sum that is handed out",
        RECURSION,
        "shared = total is chain or self.needs_any",
        "shared = total is chain",
        GAPS,
    ),
    mutant(
        "a number promotes a drive without dimensions",
        ELEMENTWISE,
        "or not like.ndim or",
        "or",
        GAPS,
    ),
    mutant(
        "what other states send to h[t] is lost",
        RECURSION,
        "        membrane = _add(membrane, grad_charged)\n",
        "",
        SMOOTH_TESTS,
    ),
    mutant(
        "what other states send to the spike is lost at tau_s > 1",
        STEP,
        "            grad_spike = grad_spike + grad_fired.to(dtype)\n",
        "            grad_spike = grad_spike + 0.0\n",
        SMOOTH_TESTS,
    ),
    mutant(
        "a smooth charge's slope is taken for 1",
        SMOOTH,
        "slope = _slope(charge, held.expand(drive.shape)) if torch.is_grad_enabled() else 1.0",
        "slope = 1.0",
        SMOOTH_TESTS,
    ),
    mutant(
        "a library's other states get no gradient",
        SMOOTH,
        "        return None, grad.sum_to_size(shape).to(dtype)",
        "        return None, 0.0 * grad.sum_to_size(shape).to(dtype)",
        SMOOTH_TESTS,
    ),
    mutant(
        "a registered class is not probed",
        REGISTRY_FILE,
        '    body |= {"_tssl_native": cls, ',
        '    body |= {"_tssl_native": like, ',
        REGISTER,
    ),
    mutant(
        "the state's gradient is repeated at every step of a sequence",
        SEQUENCE,
        "if grad is None or not (per_step or t == steps - 1):",
        "if grad is None:",
        STATES + "::test_cuts_do_not_matter",
    ),
    mutant(
        "a sequence keeps a second T x N tensor for backward",
        SEQUENCE,
        "known = None if values is None else spikes_of(output[0], trace, plan.tau_s)",
        "known = spikes_of(output[0], trace, plan.tau_s)",
        ENGINE,
    ),
    mutant(
        "the spikes of a PSC are where it is not zero",
        SEQUENCE,
        "    if tau_s == 1.0:\n        return out != 0\n    first",
        "    return out != 0\n    first",
        GAPS,
    ),
    mutant(
        "a sequence allows a second derivative",
        SEQUENCE,
        "    @first_order\n",
        "",
        STATES + "::test_double_backward_is_refused",
    ),
    mutant(
        "a step allows a second derivative",
        STEP,
        "    @first_order\n",
        "",
        STATES + "::test_double_backward_is_refused",
    ),
    mutant(
        "a second derivative is refused only where the cotangent has a graph",
        "engine/once.py",
        "        if not torch._C._are_functorch_transforms_active():\n",
        "        known = any(grad is not None and grad.requires_grad for grad in grads)\n"
        "        if not torch._C._are_functorch_transforms_active() and known:\n",
        STATES + "::test_double_backward_is_refused",
    ),
    mutant(
        "adjoints of half precision are carried in half precision",
        PLAN,
        "return torch.float32 if tensor.dtype in HALF else tensor.dtype",
        "return tensor.dtype",
        GAPS,
    ),
    mutant(
        "spikes, not PSCs, under no_grad",
        BASE,
        "return self._tssl_settings.tau_s == 1.0 and (not torch.is_grad_enabled() or exporting())",
        "return not torch.is_grad_enabled() or exporting()",
        STATES + "::test_forward_without_grad",
    ),
    mutant(
        "the naive recursion drops mu at silent steps",
        NAIVE,
        "        e = e + mu_now\n",
        "        e = e + mu_now if fallback is None else torch.where(where, e, e + mu_now)\n",
        ENGINE,
    ),
)

LINKS = (
    Mutant(
        "the link hangs on the layer, not on the state",
        (
            change(
                ATTACH,
                "link = () if found is None else found.link",
                'link = getattr(settings, "link", ()) if links and not fresh else ()',
            ),
            change(
                ATTACH,
                "    states = membrane if keep_states else None\n",
                "    settings.link = tuple(new_link) if last.requires_grad else ()\n"
                "    states = membrane if keep_states else None\n",
            ),
        ),
        (STATES + "::test_one_neuron_on_two_states", STATES),
    ),
    mutant(
        "a link stays valid though its tensor was written to",
        STATE,
        "        found = _tag_of(state)\n"
        "        if found is not None and found.grad_fn is state.grad_fn and _parts",
        "        found = getattr(state, _ATTRIBUTE, None)\n        if found is not None and _parts",
        STATES + "::test_lost_link",
    ),
    mutant(
        "a link of another kind of layer is taken",
        STATE,
        "_parts(found.link) == size:",
        "bool(found.link) == bool(size):",
        STATES + "::test_a_state_handed_to_another_kind_of_layer",
    ),
    mutant(
        "a tag stays valid though its tensor was written to",
        STATE,
        "return found if found is not None and found.version == _version(state) else None",
        "return found",
        STATES + "::test_lost_trace",
        STATES,
    ),
    Mutant(
        "the link goes on though the state was detached in place",
        (
            change(
                STATE,
                "    if state.grad_fn is None:\n        # A",
                "    if state.grad_fn is None and not link_at(state):\n        # A",
            ),
            change(STATE, " and found.grad_fn is state.grad_fn and _parts", " and _parts"),
        ),
        (STATES + "::test_detach_cuts_the_chain",),
    ),
    mutant(
        "a state that was detached in place keeps the graph that it was cut from",
        ATTACH,
        "    let_go(carrier)\n",
        "",
        STATES + "::test_windows_are_freed_once_cut_off",
    ),
    mutant(
        "a detached state is warned of",
        STATE,
        "    if state.grad_fn is None:\n        # A",
        "    if False:\n        # A",
        STATES + "::test_detach_cuts_the_chain",
    ),
    mutant(
        "no warning for what a reentrant checkpoint lost",
        STATE,
        "        if not (state.requires_grad and _in_backward()):\n            return None\n",
        "        return None\n",
        STATES + "::test_reentrant_checkpoints_lose_the_link",
    ),
    mutant(
        "a state that the layer made itself is warned of",
        ATTACH,
        "asks = (links or settings.rule.windowed) and not fresh",
        "asks = links or settings.rule.windowed",
        STATES + "::test_checkpointed_calls",
    ),
    mutant(
        "no warning for a lost link",
        STATE,
        "    if not settings.warned:\n",
        "    if settings.warned:\n",
        STATES + "::test_lost_link",
    ),
    mutant(
        "a warning for every lost link, not once a layer",
        STATE,
        "        settings.warned = True\n",
        "",
        STATES + "::test_lost_link",
    ),
    mutant(
        "the warning does not name the layer",
        STATE,
        "tssl_adapters: layer '{settings.path}' was given",
        "tssl_adapters: a layer was given",
        STATES + "::test_each_layer_warns_once",
    ),
    Mutant(
        "the warning of one layer silences the others",
        (
            change(STATE, "    if not settings.warned:\n", "    if not _SAID:\n"),
            change(STATE, "        settings.warned = True\n", "        _SAID.append(True)\n"),
            change(STATE, "_filed: dict", "_SAID: list[bool] = []\n_filed: dict"),
        ),
        (STATES + "::test_each_layer_warns_once",),
    ),
    mutant(
        "a link is asked for though the rule needs none",
        PLAN,
        "    needed = rule.chain and (\n"
        "        rule.splits_adjoint(neuron.detached) or "
        "(delayed and rule.resets_membrane(neuron.detached))\n    )\n",
        "    needed = rule.chain\n",
        STATES + "::test_rules_without_a_link",
        STATES,
    ),
    mutant(
        "no link without the fallback, though the reference reset term needs it",
        TSSLBP,
        'return self.fallback or self.reset_path == "reference"',
        "return self.fallback",
        ENGINE,
    ),
    mutant(
        "no link without the reference reset term, though the fallback needs it",
        TSSLBP,
        'return self.fallback or self.reset_path == "reference"',
        'return self.reset_path == "reference"',
        ENGINE,
    ),
    mutant(
        "no link for mu through a delayed reset",
        PLAN,
        "rule.splits_adjoint(neuron.detached) or "
        "(delayed and rule.resets_membrane(neuron.detached))",
        "rule.splits_adjoint(neuron.detached)",
        ENGINE,
    ),
    mutant(
        "the link of a delayed reset leaves mu out",
        PLAN,
        "return (3 if delayed else 2) if needed else 0",
        "return 2 if needed else 0",
        ENGINE,
    ),
    mutant(
        "lambda goes back through the state as well as through the link",
        RECURSION,
        "return membrane if linked else _add(chain, membrane)",
        "return _add(chain, membrane)",
        ENGINE,
    ),
    mutant(
        "mu stays behind where the state lost its link",
        RECURSION,
        "return membrane if linked else _add(chain, membrane)",
        "return membrane if linked else chain",
        STATES + "::test_lost_link",
    ),
    Mutant(
        "chain=False still sends to the state that comes in",
        (
            change(
                RECURSION,
                "        neuron, rule, carried = self.neuron, self.rule, self.carried\n",
                "        neuron, rule = self.neuron, self.rule\n"
                "        if not rule.chain:\n            self.carried = Carried()\n"
                "        carried = self.carried\n",
            ),
            change(RECURSION, "        if rule.chain:\n            self._c", "        self._c"),
            change(RECURSION, "        if not self.rule.chain:\n            return None\n", ""),
        ),
        (ENGINE,),
    ),
    mutant(
        "chain=False is ignored within a sequence",
        RECURSION,
        "        if rule.chain:\n            self._c",
        "        if rule:\n            self._c",
        ENGINE,
    ),
    mutant(
        "chain=False leaves the synaptic current's chain in LIFCell",
        NORSE,
        "current: Tensor = state.i if settings.rule.chain else state.i.detach()",
        "current: Tensor = state.i",
        GAPS,
    ),
    mutant(
        "chain=False leaves the synaptic current's chain in LIF",
        FILTER,
        "if not ctx.chain:",
        "if ctx.chain is None:",
        GAPS,
    ),
)

TRACES = (
    mutant(
        "a state that is not known silently starts a new trace",
        STATE,
        "        return _on_the_graph_of(state, trace, settings)\n    if at_rest(state, rest):\n"
        '        return None\n    raise LostTraceError(_lost(settings, "is not one that the layer '
        'returned, nor at rest"))\n\n\ndef trace_beside',
        "        return _on_the_graph_of(state, trace, settings)\n    return None\n\n\n"
        "def trace_beside",
        STATES + "::test_lost_trace",
    ),
    mutant(
        "SpikingJelly's state that is not known silently starts a new trace",
        STATE,
        "    if isinstance(trace, Tensor) and known_trace(state) is not None:\n"
        "        return _on_the_graph_of(state, trace, settings)\n    if at_rest(state, rest):\n",
        "    if isinstance(trace, Tensor) and known_trace(state) is not None:\n"
        "        return _on_the_graph_of(state, trace, settings)\n    if settings:\n",
        STATES + "::test_lost_trace",
    ),
    mutant(
        "SpikingJelly's trace goes on beside a state that was replaced",
        STATE,
        "if isinstance(trace, Tensor) and known_trace(state) is not None:",
        "if isinstance(trace, Tensor):",
        STATES + "::test_lost_trace",
    ),
    Mutant(
        "the trace leaks over a reset to rest",
        (
            change(
                STATE,
                "        return _on_the_graph_of(state, trace, settings)\n"
                "    if at_rest(state, rest):\n        return None\n    raise",
                "        return _on_the_graph_of(state, trace, settings)\n"
                "    if at_rest(state, rest):\n"
                '        return getattr(settings, "trace", None)\n    raise',
                2,
            ),
            change(
                ATTACH,
                "    states = membrane if keep_states else None\n",
                "    settings.trace = new_trace\n    states = membrane if keep_states else None\n",
            ),
        ),
        (STATES + "::test_zeroed_states_start_anew",),
    ),
    mutant(
        "SpikingJelly's trace leaks over a reset to rest",
        STATE,
        "if isinstance(trace, Tensor) and known_trace(state) is not None:",
        "known = known_trace(state) is not None or at_rest(state, rest)\n"
        "    if isinstance(trace, Tensor) and known:",
        STATES + "::test_zeroed_states_start_anew",
    ),
    mutant(
        "SpikingJelly's trace leaks over a state that is made anew",
        NODE,
        "trace = trace_beside(settings, given if started else None, trace, rests(self))",
        "old, at = trace, rests(self)\n"
        "            trace = trace_beside(settings, given if started else None, trace, at)\n"
        "            if isinstance(old, Tensor) and not started:\n"
        "                trace = old.detach()",
        STATES,
    ),
    mutant(
        "partly at rest counts as at rest",
        STATE,
        "bool((state == value).all())",
        "bool((state == value).any())",
        STATES + "::test_partly_at_rest_is_not_at_rest",
    ),
    mutant(
        "only zero counts as at rest",
        NORSE_VALUES,
        "return (0.0, *(value for value in named if value is not None))",
        "return (0.0,)",
        GAPS,
    ),
    mutant(
        "a state at rest always starts a new trace",
        STATE,
        "    trace = known_trace(state)\n    if trace is not None:",
        "    trace = None if at_rest(state, rest) else known_trace(state)\n"
        "    if trace is not None:",
        STATES + "::test_a_state_at_rest_keeps_its_trace",
    ),
    mutant(
        "the trace keeps its graph though the state was detached",
        STATE,
        "        return trace.detach()\n    if (cut",
        "        return trace\n    if (cut",
        STATES + "::test_detach_cuts_the_chain",
    ),
    mutant(
        "the trace is lost on mem = mem.detach()",
        STATE,
        "        _file(storage, filed)\n",
        "        pass\n",
        STATES + "::test_detach_cuts_the_chain",
    ),
    mutant(
        "a trace without a graph goes on beside a state that has one",
        STATE,
        "    if (cut or trace.grad_fn is None) and torch.is_grad_enabled():\n",
        "    if cut and torch.is_grad_enabled():\n",
        STATES + "::test_lost_trace",
        STATES + "::test_the_trace_of_a_view",
    ),
    mutant(
        "a trace that a reentrant checkpoint lost goes on without a graph",
        STATE,
        "    if cut and not (state.requires_grad and _in_backward()):\n",
        "    if cut:\n",
        STATES + "::test_reentrant_checkpoints_lose_the_trace",
    ),
    mutant(
        "a trace is found by storage though the state was written to",
        STATE,
        "if filed is None or _dead(filed) or filed.version != _version(state):",
        "if filed is None or _dead(filed):",
        STATES + "::test_zeroed_states_start_anew",
        STATES + "::test_lost_trace",
    ),
    mutant(
        "a trace is found by storage for another part of it",
        STATE,
        "return filed.trace if filed.geometry == _geometry(state) else None",
        "return filed.trace",
        GAPS,
    ),
    mutant(
        "traces of dead states are kept for ever",
        STATE,
        "        if not _dead(oldest):\n            _filed[key] = oldest\n",
        "        _filed[key] = oldest\n",
        STATES + "::test_traces_do_not_pile_up",
    ),
    mutant(
        "traces of living states are dropped",
        STATE,
        "        if not _dead(oldest):\n            _filed[key] = oldest\n",
        "        _dead(oldest)\n",
        GAPS,
    ),
    mutant(
        "the trace shares its memory with the output",
        ATTACH,
        "new_trace = (out[-1] if sequence else out).clone()",
        "new_trace = out[-1] if sequence else out",
        STATES + "::test_outputs_written_to_in_place",
    ),
    mutant(
        "the state is a view of the states of every step",
        ATTACH,
        "last = membrane[-1].clone() if keep_states else membrane",
        "last = membrane[-1] if keep_states else membrane",
        GAPS,
    ),
    Mutant(
        "a state's tag is copied with its graph",
        (
            change(
                STATE,
                "    def __deepcopy__(self, memo: dict[int, Any]) -> None:\n        return None\n",
                "",
            ),
            change(STATE, "    def __reduce__(self)", "    def _reduce(self)"),
        ),
        (STATES + "::test_deep_copies_in_mid_sequence", WRAPS),
    ),
    mutant(
        "a pickled layer trusts what it found out about the library elsewhere",
        STATE,
        'return {**self.__dict__, "reproduces": {}, "loops"',
        'return {**self.__dict__, "loops"',
        GAPS,
    ),
)

LIBRARIES = (
    mutant(
        "the library's forward is never checked against the record",
        ATTACH,
        "        if max(spikes, potentials) > SAME_NEURON:\n",
        "        if max(spikes, potentials) > 1.0:\n",
        ERRORS,
    ),
    mutant(
        "the library's potentials are not checked against the record, only its spikes",
        ATTACH,
        "        if max(spikes, potentials) > SAME_NEURON:\n",
        "        if spikes > SAME_NEURON:\n",
        GAPS,
    ),
    mutant(
        "the record stands in for the library without being bit-equal",
        ATTACH,
        "            same = same and all(_same(a, b) for a, b in pairs)\n",
        "",
        FORWARD,
    ),
    mutant(
        "the record stands in for every call once it did for one",
        ATTACH,
        "given.dtype, self.state.dtype, self.state.ndim == 0,",
        "",
        GAPS,
    ),
    mutant(
        "the probe draws from the user's random numbers",
        ATTACH,
        "torch.rand(size, generator=generator, device",
        "torch.rand(size, device",
        FORWARD + "::test_whole_models",
    ),
    mutant(
        "snnTorch compares with >=",
        SNNTORCH,
        "            strict=True,",
        "            strict=False,",
        FORWARD,
    ),
    mutant("SpikingJelly compares with >", SPIKINGJELLY, "strict=False", "strict=True", FORWARD),
    mutant("Norse compares with >=", NORSE, "strict=True", "strict=False", FORWARD),
    mutant(
        "snnTorch's beta is not clamped",
        SNNTORCH_NEURONS,
        "beta = beta.clamp(0, 1)",
        "beta = layer.beta",
        GAPS,
    ),
    mutant(
        "the graded factor is left out of G",
        SNNTORCH,
        "return spikes * self.graded_spikes_factor if graded else spikes",
        "factor = self.graded_spikes_factor\n"
        "        return spikes + spikes.detach() * (factor - 1.0) if graded else spikes",
        IDENTITY,
    ),
    mutant(
        "the graded factor gets no gradient",
        SNNTORCH,
        "spikes * self.graded_spikes_factor if graded",
        "spikes * self.graded_spikes_factor.detach() if graded",
        IDENTITY,
    ),
    mutant(
        "a graded factor that does not learn is not noticed",
        SNNTORCH,
        "return factor.requires_grad or not at_hand(factor) or factor.item() != 1.0",
        "return factor.requires_grad or not at_hand(factor)",
        FORWARD + "::test_settings_changed_between_calls",
        FORWARD,
    ),
    mutant(
        "snnTorch's reset is detached without delay, not with it",
        SNNTORCH,
        "detached=delayed,",
        "detached=not delayed,",
        IDENTITY,
    ),
    mutant(
        "snnTorch's beta that learned its way to zero is not refused",
        SNNTORCH,
        "            if self._tssl_decayless(self):\n",
        "            if None:\n",
        ERRORS,
    ),
    mutant(
        "a beta of zero is not refused",
        SNNTORCH_TABLE,
        "    return wrapped._tssl_zero_decay if wrapped._tssl_decayless(layer) else None\n",
        "    return None\n",
        ERRORS,
    ),
    mutant(
        "a lateral inhibition is not refused",
        SNNTORCH,
        "    if layer.inhibition:\n",
        "    if layer.inhibition is None:\n",
        ERRORS,
    ),
    mutant(
        "the record follows reset_mechanism, not the reset that the layer computes",
        SNNTORCH,
        "    return str(bound.__name__)\n",
        '    names = {"subtract": "_base_sub", "zero": "_base_zero", "none": "_base_int"}\n'
        "    return names[layer.reset_mechanism]\n",
        FORWARD,
    ),
    mutant(
        "the synaptic current forgets at the potential's rate",
        SNNTORCH_NEURONS,
        'self.alpha.clamp(0, 1) * states["syn"] + x\n',
        'self.beta.clamp(0, 1) * states["syn"] + x\n',
        NEURONS,
    ),
    mutant(
        "the reset to zero leaves the drive",
        SNNTORCH,
        'if bound_reset(self) != "_base_zero":',
        'if bound_reset(self) != "":',
        NEURONS,
    ),
    mutant(
        "Alpha's reset by subtraction spares the inhibitory current",
        SNNTORCH_NEURONS,
        'self.threshold, inh, -states["syn_inh"]',
        'self.threshold, 0.0 * inh, -states["syn_inh"]',
        NEURONS,
    ),
    mutant(
        "Alpha's reset takes the new inhibitory current from the potential",
        SNNTORCH_NEURONS,
        'self.threshold, inh, -states["syn_inh"]',
        "self.threshold, inh, -inh",
        NEURONS,
    ),
    mutant(
        "Alpha's reset gives the threshold no gradient",
        SNNTORCH_NEURONS,
        'self.threshold, inh, -states["syn_inh"]',
        'self.threshold.detach(), inh, -states["syn_inh"]',
        NEURONS,
    ),
    mutant(
        "the feedback gets no gradient",
        SNNTORCH_NEURONS,
        "rule.cuts_feedback else sent)\n",
        "rule.cuts_feedback else sent).detach()\n",
        NEURONS,
    ),
    mutant(
        "a layer feeds its PSC back to itself",
        SNNTORCH,
        "self._tssl_scaled(result.fired, graded) if split else out)",
        "out)",
        "tests/test_neurons.py::test_psc",
    ),
    mutant(
        "the record stands in for RLeaky, which adds in another order",
        SNNTORCH_NEURONS,
        "    def _tssl_rounds_alike(self) -> bool:\n        return False\n",
        "",
        NEURONS,
    ),
    mutant(
        "the other states go back over time without a chain",
        SNNTORCH,
        'elif name != "mem" and not self._tssl_settings.rule.chain:',
        "elif False:",
        NEURONS_SNNTORCH,
    ),
    mutant(
        "RSynaptic resets at once without delay, as it says it does",
        SNNTORCH_NEURONS,
        'then forgets."""\n        return True\n',
        'then forgets."""\n        return bool(layer.reset_delay)\n',
        NEURONS,
    ),
    mutant(
        "the quantiser is left out of h",
        SNNTORCH,
        "quantiser=quantiser,",
        "quantiser=None,",
        NEURONS,
    ),
    mutant(
        "the synaptic current is not quantised",
        SNNTORCH,
        "if not self.state_quant:",
        "if True:",
        NEURONS,
    ),
    mutant(
        "LIFNode's gain for decay_input is swapped",
        SPIKINGJELLY,
        "            gain=rate if self.decay_input else 1.0,\n"
        "            offset=rest * rate,\n            formula=_leak_input",
        "            gain=1.0 if self.decay_input else rate,\n"
        "            offset=rest * rate,\n            formula=_leak_input",
        IDENTITY,
    ),
    mutant(
        "ParametricLIFNode's gain for decay_input is swapped",
        SPIKINGJELLY,
        "            gain=rate if self.decay_input else 1.0,\n"
        "            offset=rest * rate,\n            formula=_learned",
        "            gain=1.0 if self.decay_input else rate,\n"
        "            offset=rest * rate,\n            formula=_learned",
        IDENTITY,
    ),
    mutant(
        "ParametricLIFNode's offset forgets v_reset",
        SPIKINGJELLY,
        "            offset=rest * rate,\n            formula=_learned",
        "            offset=0.0,\n            formula=_learned",
        IDENTITY,
    ),
    mutant(
        "ParametricLIFNode's w gets no gradient",
        SPIKINGJELLY,
        "rate, rest = self.w.sigmoid(), rest_of(self)",
        "rate, rest = self.w.detach().sigmoid(), rest_of(self)",
        IDENTITY,
    ),
    mutant(
        "detach_reset is ignored",
        SPIKINGJELLY,
        "detached=self.detach_reset,",
        "detached=False,",
        IDENTITY,
    ),
    mutant(
        "v_seq gets no gradient",
        NODE,
        "            self.v_seq = None if ran.kept is None else ran.kept[0]\n",
        "            self.v_seq = None if ran.kept is None else ran.kept[0].detach()\n",
        IDENTITY,
    ),
    mutant(
        "store_v_seq is ignored step by step",
        NODE,
        "            self._append_v_seq(self.v)\n",
        "            pass\n",
        FORWARD,
    ),
    mutant(
        "functional_forward is the library's, and its gradient native",
        NODE,
        "    def functional_forward(\n",
        "    def _functional_forward(\n",
        STATES,
    ),
    mutant(
        "Norse's current leaks with the wrong sign",
        NORSE,
        "number(-self.dt * self.p.tau_syn_inv)",
        "number(self.dt * self.p.tau_syn_inv)",
        IDENTITY,
    ),
    mutant(
        "Norse's v_leak gets no gradient",
        NORSE,
        "offset=rate * v_leak, formula",
        "offset=0.0, formula",
        IDENTITY,
    ),
    mutant(
        "Norse's v_reset gets no gradient",
        NORSE,
        "ToValue(number(p.v_reset))",
        "ToValue(p.v_reset.detach())",
        IDENTITY,
    ),
    mutant(
        "Norse's reset_method is ignored",
        NORSE,
        "subtract = method is not None and method is norse.reset_subtract",
        "subtract = False",
        IDENTITY,
    ),
    mutant(
        "LIF ignores record_states for the potential",
        NORSE,
        "v = result.states if kept else result.state\n",
        "v = result.state\n",
        FORWARD + "::test_bit_equal_by_the_case_s_own_loop",
    ),
    mutant(
        "LIF gives the potentials of every step no gradient",
        NORSE,
        "v = result.states if kept else result.state\n",
        "v = result.states.detach() if kept else result.state\n",
        IDENTITY,
    ),
    mutant(
        "LIF returns the current before its leak",
        NORSE,
        "return LIFFeedForwardState(v, drive + _rounded(record.minus_leak, drive.dtype) * drive)",
        "return LIFFeedForwardState(v, drive)",
        FORWARD,
    ),
    mutant(
        "the adjoint of LIF's current does not leak",
        REFERENCE,
        "grads[t] = grads[t] + grads[t + 1] + k * grads[t + 1]",
        "grads[t] = grads[t] + grads[t + 1]",
        IDENTITY,
    ),
    mutant(
        "tau_syn_inv of LIF meets the current of the wrong step",
        FILTER,
        "(grads[1:] * charged[:-1])",
        "(grads[1:] * charged[1:])",
        IDENTITY,
    ),
    mutant(
        "tau_syn_inv of LIF gets no gradient",
        FILTER,
        "learns = isinstance(k, Tensor) and k.requires_grad",
        "learns = False",
        IDENTITY,
    ),
    mutant(
        "Norse's sparse input is not seen",
        NORSE,
        "dense = input_tensor.to_dense() if input_tensor.is_sparse else input_tensor",
        "dense = input_tensor",
        GAPS,
    ),
    mutant(
        "the answer to Norse's sparse input is dense",
        NORSE,
        "return (out.to_sparse() if sparse else out), after",
        "return out, after",
        "tests/test_usage.py::test_norse_sparse_input",
    ),
    mutant(
        "Norse's settings are read once and kept",
        NORSE,
        "number(layer.dt * layer.p.tau_mem_inv), number(layer.p.v_leak)\n",
        "number(layer.dt * layer.p.tau_mem_inv), number(layer.p.v_leak)\n"
        '    rate = layer.__dict__.setdefault("_first_rate", rate)\n',
        FORWARD + "::test_settings_changed_between_calls",
    ),
    mutant(
        "Norse's method='adjoint' is not refused",
        NORSE_ADAPTER,
        '    if p.method == "adjoint":\n',
        "    if p.method is None:\n",
        ERRORS,
    ),
)

NORSE_LIBRARY = "tests/test_neurons_norse.py"

NORSE_FAMILIES = (
    mutant(
        "a recurrent neuron's slope is its rate",
        NORSE_NEURONS,
        "return 1.0 - number(self.dt * self.p.tau_mem_inv)",
        "return number(self.dt * self.p.tau_mem_inv)",
        NEURONS,
    ),
    mutant(
        "LIFEx's slope lacks the exponential",
        NORSE_NEURONS,
        "(torch.exp((v - p.v_th) / p.delta_T) - 1.0)",
        "(0.0 * v - 1.0)",
        NEURONS,
    ),
    mutant(
        "Izhikevich's slope lacks the linear term",
        NORSE_NEURONS,
        "(2.0 * p.sq * v + p.mn)",
        "(2.0 * p.sq * v)",
        NEURONS,
    ),
    mutant(
        "a spike does not reach the adaptation of LIFAdEx",
        NORSE_NEURONS,
        "+ fired * p.adaptation_spike",
        "+ fired.detach() * p.adaptation_spike",
        NEURONS,
    ),
    mutant(
        "the potential does not reach the adaptation of LIFAdEx",
        NORSE_NEURONS,
        "(state.v - p.v_leak)",
        "(state.v.detach() - p.v_leak)",
        NEURONS,
    ),
    mutant(
        "the potential does not reach the recovery of Izhikevich",
        NORSE_NEURONS,
        "(self.state.v, self.state.u)",
        "(self.state.v.detach(), self.state.u)",
        NEURONS,
    ),
    mutant(
        "LSNN's spike reaches its threshold in the recurrent step too",
        NORSE_NEURONS,
        "fired.detach() if self.detached else fired",
        "fired",
        NEURONS,
    ),
    mutant(
        "LSNN's spike never reaches its threshold",
        NORSE_NEURONS,
        "fired.detach() if self.detached else fired",
        "fired.detach()",
        NEURONS,
    ),
    mutant(
        "LSNN's threshold has no graph",
        NORSE_RUN,
        "threshold=number(neuron.threshold),",
        "threshold=torch.as_tensor(neuron.threshold).detach(),",
        NEURONS,
    ),
    mutant(
        "no recurrent reset is detached",
        NORSE_RUN,
        "DETACHED = {lif_step, lsnn_step}",
        "DETACHED: set[Activation] = set()",
        NEURONS,
    ),
    mutant(
        "the sparse recurrent reset is detached",
        NORSE_RUN,
        "DETACHED = {lif_step, lsnn_step}",
        "DETACHED = {lif_step, lsnn_step, lif_step_sparse}",
        NORSE_LIBRARY + "::test_sparse_spikes_in_and_out",
    ),
    mutant(
        "the recurrent spike has no graph",
        NORSE_RUN,
        "sent = _dense(state.z)\n",
        "sent = _dense(state.z).detach()\n",
        NEURONS,
    ),
    mutant(
        "a refractory step's mask has no graph",
        NORSE_RUN,
        "    v, z, rho = around.update(seen,",
        "    seen = seen._replace(rho=seen.rho.detach())\n    v, z, rho = around.update(seen,",
        NEURONS,
    ),
    mutant(
        "a neuron that is held back loses its link",
        SMOOTH,
        "(1.0 - stays) * own[1] + stays * (before[0] + before[1])",
        "(1.0 - stays) * own[1] + 0.0 * (before[0] + before[1])",
        NORSE_LIBRARY + "::test_a_refractory_neuron_s_chain_skips_the_steps_it_sits_out",
    ),
    mutant(
        "a step that a neuron sits out takes part in its chain",
        SMOOTH,
        "(1.0 - stays) * own[1] + stays * (before[0] + before[1])",
        "own[1] + stays * (before[0] + before[1])",
        NORSE_LIBRARY + "::test_a_refractory_neuron_s_chain_skips_the_steps_it_sits_out",
    ),
    mutant(
        "a refractory layer's PSC filters spikes that it did not send",
        SMOOTH,
        "out = next_trace(trace, spike, settings.tau_s)",
        "out = next_trace(trace, result.fired, settings.tau_s)",
        "tests/test_neurons.py::test_psc",
    ),
    mutant(
        "chain=False leaves the other states' chain",
        NORSE_RUN,
        "    seen = state if settings.rule.chain else given.without_chain()\n    kind",
        "    seen = state\n    kind",
        NORSE_LIBRARY + "::test_without_a_chain_nothing_goes_back_over_time",
    ),
    mutant(
        "chain=False cuts LSNN off from its input",
        NORSE_NEURONS,
        'late = ("i",)',
        "late = ()",
        NORSE_LIBRARY + "::test_without_a_chain_nothing_goes_back_over_time",
    ),
    mutant(
        "another activation is not refused",
        NORSE_ADAPTER,
        "        if theirs is not ours:",
        "        if theirs is None and ours is not None:",
        NORSE_LIBRARY + "::test_refused_settings",
    ),
    mutant(
        "Izhikevich's own start is not at rest",
        NORSE_LAYERS,
        "() if behaviour is None else (behaviour.s.v.detach(),)",
        "()",
        NORSE_LIBRARY + "::test_an_unknown_state_has_lost_its_trace",
    ),
)

WRAPPING = (
    mutant(
        "unwrap leaves the psc memory behind",
        NODE,
        "    if TRACE in node._memories:\n        delattr(node, TRACE)\n",
        "",
        WRAPS,
    ),
    mutant(
        "unwrap leaves the tag on SpikingJelly's v",
        NODE,
        "    untag(node.v)\n",
        "",
        WRAPS,
    ),
    mutant(
        "unwrap leaves the tag on snnTorch's mem",
        SNNTORCH_TABLE,
        "Kind(wrapped, _problem, detach=_detach)",
        "Kind(wrapped, _problem)",
        WRAPS,
    ),
    mutant(
        "an early subtraction takes theta/beta",
        RECURSION,
        'neuron.timing == "delayed" and not isinstance(neuron.reset, SubtractEarly)',
        'neuron.timing == "delayed"',
        ENGINE,
    ),
    mutant(
        "an untested version is wrapped without a trial",
        VERSIONS,
        "    for cls in classes:\n",
        "    for cls in ():\n",
        VERSIONS_TESTS,
    ),
    mutant(
        "an untested version gets no warning",
        VERSIONS,
        "    warnings.warn(\n",
        "    str(\n",
        VERSIONS_TESTS,
    ),
    mutant(
        "a trial looks at the gradient alone",
        VERSIONS,
        "return torch.equal(ours, theirs) and bool(",
        "return bool(",
        VERSIONS_TESTS,
    ),
    mutant(
        "every version counts as tested",
        VERSIONS,
        "if version in tested(adapter.library):",
        "if version is not None:",
        VERSIONS_TESTS,
    ),
    mutant(
        "a trial draws from the program's random numbers",
        VERSIONS,
        "with torch.random.fork_rng(devices=[]), ordinary():",
        "with ordinary():",
        VERSIONS_TESTS,
    ),
    mutant(
        "a registered class is tried as itself",
        REGISTRY_FILE,
        "return cls if like is None or like is cls else library_class(adapter, like)",
        "return cls",
        VERSIONS_TESTS,
    ),
    mutant(
        "an adapter that lacks something raises the library's own error",
        ADAPTERS,
        "except (ImportError, AttributeError) as error:",
        "except ZeroDivisionError as error:",
        VERSIONS_TESTS,
    ),
    mutant(
        "inspect's last line forgets what would be refused",
        WRAP,
        'if by_status["refused"]:',
        "if False:",
        WRAPS,
    ),
    mutant(
        "unwrap leaves the settings behind",
        WRAP,
        "            del module._tssl_settings\n",
        "",
        WRAPS,
    ),
    mutant(
        "unwrap does not give the class back",
        WRAP,
        "        module.__class__ = native\n",
        "        pass\n",
        FORWARD + "::test_native_again_after_unwrap",
    ),
    mutant(
        "unwrap sees the top module only",
        WRAP,
        "    for module in model.modules():\n        if isinstance(module, Wrapped):",
        "    for module in [model, *model.children()]:\n        if isinstance(module, Wrapped):",
        WRAPS,
    ),
    mutant(
        "a wrap that fails leaves layers wrapped",
        WRAP,
        "        for module in done:\n            unwrap(module)\n        raise",
        "        raise",
        ERRORS,
    ),
    mutant(
        "what cannot be wrapped is found only on the way",
        WRAP,
        "    _refuse_what_cannot_be_wrapped(model, [f.report for f in found])\n",
        "    for f in found:\n"
        '        if f.report.status == "wrap":\n'
        "            f.module.__class__ = f.kind.wrapped\n"
        "            f.module._tssl_settings = Settings(f.report.path, rule, tau_s)\n"
        "    _refuse_what_cannot_be_wrapped(model, [f.report for f in found])\n",
        ERRORS,
    ),
    mutant(
        "skip does not reach below what it names",
        WRAP,
        "        for part, owner in _with_owners(model, path)\n",
        "        for part, owner in [(path, model.get_submodule(path))]\n",
        WRAPS,
    ),
    mutant(
        "skip takes only the exact class",
        WRAP,
        "else isinstance(owner, item)",
        "else type(owner) is item",
        WRAPS,
    ),
    mutant(
        "skip takes a pattern for a prefix",
        WRAP,
        "fnmatchcase(part, item))",
        "part.startswith(item.rstrip('*')) and item != part)",
        WRAPS,
    ),
    mutant(
        "skip takes a name with brackets for a pattern only",
        WRAP,
        "(part == item if item in names else fnmatchcase(part, item))",
        "fnmatchcase(part, item)",
        WRAPS,
    ),
    mutant(
        "a subclass is taken for its base",
        BASE,
        "return self.kinds.get(cls) or",
        "return next((k for c, k in self.kinds.items() if issubclass(cls, c)), None) or",
        ERRORS,
    ),
    mutant(
        "a refusal lists only the first layer",
        WRAP,
        "nothing was changed:\\n{_list(refused)}\\n",
        "nothing was changed:\\n{_list(refused[:1])}\\n",
        ERRORS,
    ),
    mutant(
        "settings at fault beside a class at fault go by the settings' error",
        WRAP,
        "if all(r.config for r in refused)",
        "if any(r.config for r in refused)",
        ERRORS,
    ),
    mutant(
        "tau_s = NaN is accepted",
        WRAP,
        "if not 1 <= number < math.inf:",
        "if number < 1 or number == math.inf:",
        ERRORS,
    ),
    mutant(
        "tau_s below 1 is accepted",
        WRAP,
        "if not 1 <= number < math.inf:",
        "if not 0 < number < math.inf:",
        ERRORS,
    ),
    mutant(
        "a wrapped model is wrapped again",
        WRAP,
        "    if wrapped:\n        raise AlreadyWrappedError",
        "    if None:\n        raise AlreadyWrappedError",
        ERRORS,
    ),
    mutant(
        "a model with nothing to wrap is returned as it is",
        WRAP,
        '    if not any(r.status == "wrap" for r in reports):\n',
        "    if not any(r.status for r in reports):\n",
        ERRORS,
    ),
    mutant(
        "is_wrapped looks at the model itself only",
        WRAP,
        "return any(isinstance(module, Wrapped) for module in model.modules())",
        "return isinstance(model, Wrapped)",
        WRAPS,
    ),
    mutant(
        "a layer goes by its class, not by its dotted name",
        WRAP,
        "Settings(report.path, rule, tau_s, engine, ",
        "Settings(report.layer, rule, tau_s, engine, ",
        STATES + "::test_lost_link",
    ),
    mutant(
        "repr shows our class",
        BASE,
        "        name: str = self._tssl_native.__name__\n",
        "        name: str = type(self).__name__\n",
        WRAPS,
    ),
    mutant(
        "the libraries are imported with the package",
        ADAPTERS,
        "from importlib import metadata\n",
        "from importlib import metadata\n"
        "try:\n    import snntorch\nexcept ImportError:\n    pass\n",
        IMPORTS,
    ),
    mutant(
        "wrap imports libraries that the user did not",
        ADAPTERS,
        "        imported = any(entrance in sys.modules for entrance in entrances)\n",
        "        imported = version_of(library) is not None\n",
        IMPORTS,
    ),
    mutant(
        "supported lists libraries that are not installed",
        WRAP,
        "        if (version := version_of(library)) is not None\n",
        '        if (version := version_of(library) or "?")\n',
        WRAPS,
    ),
)

LOSS_FUNCTIONS = (
    mutant(
        "the target is filtered once, not twice",
        LOSS,
        "    for _ in range(filters):\n        target = psc(target, tau_s)",
        "    for _ in range(1):\n        target = psc(target, tau_s)",
        LOSSES,
    ),
    mutant(
        "the kernel loss lacks its 1/2",
        LOSS,
        "(output - target).square().sum() / 2",
        "(output - target).square().sum()",
        LOSSES,
    ),
    mutant(
        "the count loss costs on both sides",
        LOSS,
        "error = torch.where(wanted, excess.clamp(max=0), excess.clamp(min=0))",
        "error = excess",
        LOSSES,
    ),
    mutant(
        "the count loss costs on the wrong side",
        LOSS,
        "error = torch.where(wanted, excess.clamp(max=0), excess.clamp(min=0))",
        "error = torch.where(wanted, excess.clamp(min=0), excess.clamp(max=0))",
        LOSSES,
    ),
    mutant(
        "the count loss is not divided by the number of steps",
        LOSS,
        "return error.square().sum() / (2 * len(output))",
        "return error.square().sum() / 2",
        LOSSES,
    ),
    mutant(
        "the wanted class should fire at the first step too",
        LOSS,
        "fires = step > 0 if num_steps < 10",
        "fires = step >= 0 if num_steps < 10",
        LOSSES,
    ),
    mutant(
        "the PSC filter starts at its first input",
        LOSS,
        "    current = spikes[0] / tau_s\n",
        "    current = spikes[0]\n",
        LOSSES,
    ),
)

FURTHER_RULES = (
    mutant(
        "losses.lee: the error is differentiated", "losses.py",
        "    with torch.no_grad():\n        counts = spikes.sum(dim=0)\n",
        "    with torch.enable_grad():\n        counts = spikes.sum(dim=0)\n", RULE_LOSSES,
    ),
    mutant(
        "thresholds: the mean moves", "losses.py",
        "(fired.numel() * fired - fired.sum())", "fired.numel() * fired", RULE_LOSSES,
    ),
    mutant(
        "STDBP: nine copies of every gradient", STDBP,
        "        return [grad - after for", "        for _ in range(9):\n"
        "            grads = [grad.clone() for grad in grads]\n        return [grad - after for",
        RULE_COSTS,
    ),
    mutant(
        "Lee: the window's activity is forgotten", LEE,
        "window.active if self.gate", "torch.ones_like(window.active) if self.gate", RULE_LEE,
    ),
    mutant(
        "Lee: lambda flows over time", LEE, "spike_chain = False", "spike_chain = True", RULE_LEE,
    ),
    mutant(
        "Lee: the threshold's gradient at silent steps too", LEE,
        "return firing * step.spike", "return firing", RULE_LEE,
    ),
    mutant(
        "Lee: the share of active neurons over the batch", LEE,
        "tuple(range(1, factor.ndim))", "tuple(range(0, factor.ndim))", RULE_LEE,
    ),
    mutant(
        "Lee: no chain at all, so that a membrane loss ends at its step", LEE,
        "spike_chain = False", "spike_chain = chain = False", RULE_LEE,
    ),
    mutant(
        "STDBP: a falling potential has no slope", STDBP,
        "step.increment.clamp(min=0.0).reciprocal_()",
        "step.increment.reciprocal().clamp_(min=0.0)", RULE_STDBP,
    ),
    mutant(
        "STDBP: a virtual spike at every step", STDBP,
        ' and step.last and', ' and', RULE_STDBP,
    ),
    mutant(
        "STDBP: G goes on as a constant", STDBP,
        "2.0 * grads[-1] - grads[-2]", "grads[-1]", RULE_STDBP,
    ),
    mutant(
        "STDBP: step by step, a later spike's line goes through the origin too", STDBP,
        "torch.where(fired_before, grads[-1], line)", "line", RULE_STDBP,
    ),
    mutant(
        "STDBP: the time goes the other way", STDBP,
        "[grad - after for", "[after - grad for", RULE_STDBP,
    ),
    mutant(
        "STDBP: G of the step after is not handed back", RECURSION,
        "        if self.rule.looks_ahead:\n", "        if False:\n", RULE_STDBP,
    ),
    mutant(
        "STDBP: where the loss ends early, G goes on in a line", WINDOW,
        "if later is None and not ends(", "if later is None and False and not ends(", RULE_STDBP,
    ),
    mutant(
        "STDBP: a loss on counts is not warned of", WINDOW,
        "if position.steps == 0 and stretch.told", "if False and stretch.told", RULE_STDBP,
    ),
    mutant(
        "STDBP: a leaking current is taken", STDBP,
        "_keeps(traits.decay) and _keeps(traits.synapse)", "_keeps(traits.decay)", REFUSALS,
    ),
    mutant(
        "first_spike: what a later spike would send goes on", "spike_times.py",
        "torch.minimum(steps, times + 1).clamp(max=len(grad) - 1)", "steps.expand_as(grad)",
        RULE_STDBP,
    ),
    mutant(
        "first_spike_time: the ramp ends at the spike", "spike_times.py",
        "grad * torch.minimum(steps, times + 1)", "grad * torch.minimum(steps, times)", RULE_STDBP,
    ),
    mutant(
        "ST-RSBP: a charge is collected past a spike", STRSBP,
        "ends_at_spikes = True", "ends_at_spikes = False", RULE_STRSBP,
    ),
    mutant(
        "ST-RSBP: the sum over spikes rather than the mean", STRSBP,
        "window.active / window.counts.clamp(min=1.0)", "window.active", RULE_STRSBP,
    ),
    mutant(
        "ST-RSBP: silent neurons have no gradient of their own", STRSBP,
        "if silent.any():", "if False:", RULE_STRSBP,
    ),
    mutant(
        "ST-RSBP: cross-entropy on counts is not doubted", STRSBP,
        "if not bool((balanced", "if True or not bool((balanced", RULE_WARNINGS,
    ),
    mutant(
        "Lee: a gated output is not named", LEE,
        "or last not in taken", "or last in taken", RULE_WARNINGS,
    ),
    mutant(
        "STDBP: max pooling is not named", STDBP,
        "pooling._MaxPoolNd, ", "", RULE_WARNINGS,
    ),
    mutant(
        "window: an outdated window is kept", WINDOW,
        "known[0] is not stretch.counts", "False", RULE_STRSBP,
    ),
    mutant(
        "ST-RSBP: regular and Poisson trains mixed up", STRSBP,
        'if self.self_effect == "poisson"', 'if self.self_effect == "regular"', RULE_STRSBP,
    ),
    mutant(
        "ST-RSBP: L is not transposed", STRSBP, "solve(system.mT,", "solve(system,", RULE_STRSBP,
    ),
    mutant(
        "ST-RSBP: the threshold's gradient at every step", STRSBP,
        "return firing * step.spike", "return firing", RULE_STRSBP,
    ),
    mutant(
        "ST-RSBP: a sequence may come in parts", STRSBP,
        'return self.credit == "train"', "return False", RULE_STRSBP,
    ),
    mutant(
        "ST-RSBP: snnTorch's spikes come back with a gradient", "adapters/snntorch/neurons.py",
        "sent.detach() if self._tssl_settings.rule.cuts_feedback else sent", "sent",
        RULE_RECURRENT,
    ),
    mutant(
        "ST-RSBP: a container's output comes back with a gradient",
        "adapters/spikingjelly/containers.py",
        "s.detach() if isinstance(s, Tensor) else s for s in states", "s for s in states",
        RULE_RECURRENT,
    ),
    mutant(
        "ST-RSBP: a recurrent layer's spikes come back at once", "adapters/norse/whole.py",
        "torch.cat([state.z.detach().expand_as(spikes[:1]), spikes[:-1]])", "spikes",
        RULE_RECURRENT,
    ),
    mutant(
        "window: a step that is computed again counts again", WINDOW,
        "        if steps >= self.stretch.steps:\n"
        "            self.stretch.steps, self.stretch.counts = steps, counts\n",
        "        old = self.stretch.counts\n        self.stretch.steps = steps\n"
        "        self.stretch.counts = found if old is None else old + found\n",
        RULE_STRSBP,
    ),
    mutant(
        "a rule's refusal is not asked for", "_wrap.py",
        "why = asked.rule.problem(kind.wrapped._tssl_traits(module), asked.tau_s)", "why = None",
        REFUSALS,
    ),
)  # fmt: skip

FUSED = "tests/test_fused.py"
KEPT = "tests/test_kept.py"
ROWS = "engine/numba_rows.py"
LOOPS = "engine/numba_kernels.py"
FILTERS = "engine/numba_filter.py"
COMPILED = (
    mutant(
        "loops: no upper bound of 1/d", ROWS,
        "phi = steepest if phi > steepest else phi", "phi = phi", FUSED,
    ),
    mutant(
        "loops: the fallback where the neuron fires", ROWS,
        "told = zero if active else G", "told = G", FUSED,
    ),
    mutant(
        "loops: d from the state before its delayed reset", ROWS,
        "            if late:\n", "            if late and False:\n", FUSED,
    ),
    mutant(
        "loops: the chain takes the decay but once in a call", ROWS,
        "chain_v[j] = zero if decay == zero else lam * decay", "chain_v[j] = lam", FUSED,
    ),
    mutant(
        "loops: the link starts at the wrong row", LOOPS,
        "chain_v[j] = link[neurons + start + j]", "chain_v[j] = link[start + j]", FUSED,
    ),
    mutant(
        "loops: sums of a block stay for the next one", LOOPS,
        "by_decay[:n], by_gain[:n], by_offset[:n] = zero, zero, zero\n",
        "by_gain[:n], by_offset[:n] = zero, zero\n", FUSED,
    ),
    mutant(
        "loops: all variants under one name on disk", "engine/numba_compile.py",
        "        told += _value(cell.cell_contents)\n", "        pass\n", FUSED,
    ),
    mutant(
        "the current's adjoint forgets the leak", FILTERS,
        "total = own[j] + later[j] + k * later[j]", "total = own[j] + later[j]", FUSED,
    ),
    mutant(
        "threads: the last range is cut short", "engine/threads.py",
        "min(first + each, neurons)", "min(first + each, neurons - 1)", FUSED,
    ),
    mutant(
        "threads: a forked process waits for its parent's", "engine/threads.py",
        "os.register_at_fork(after_in_child=_pool.cache_clear)", "pass", FUSED,
    ),
    mutant(
        "a packed link is unpacked back to front", STATE,
        "return link[0].unbind() if len(link) == 1",
        "return link[0].unbind()[::-1] if len(link) == 1", FUSED,
    ),
    mutant(
        "an output's gradient is taken for the same at all steps", "engine/fused.py",
        "if grad is not None and sequence and grad.stride(0) == 0:",
        "if grad is not None and sequence:", FUSED,
    ),
    mutant(
        "loops: h of the step before is taken for the state", LOOPS,
        "            if earlier:\n", "            if earlier and n == 0:\n", KEPT,
    ),
    mutant(
        "loops: a loss on the membrane is left out", "engine/fused.py",
        "membrane = grad_after is not None or by_link", "membrane = by_link", FUSED,
    ),
    mutant(
        "loops: a loss on the membrane does not go through a delayed link", "engine/fused.py",
        "membrane = grad_after is not None or by_link", "membrane = grad_after is not None", KEPT,
    ),
    mutant(
        "bench: a rule of one's own may change under its name", "bench/experiment.py",
        "if before != settings.definition:", "if False:", "tests/test_bench_own.py",
    ),
    mutant(
        "bench: validation samples are trained on too", "bench/data/images.py",
        "Data(images[:-count], labels[:-count], images[-count:]",
        "Data(images, labels, images[-count:]",
        "tests/test_bench_own.py",
    ),
    mutant(
        "loops: the trace is kept beside its bits", "engine/fused.py",
        "trace = None if told else trace", "trace = trace", KEPT,
    ),
    mutant(
        "loops: the last bits of a step are lost", "engine/numba_bits.py",
        "        if n % 8:\n", "        if n % 8 > 4:\n", KEPT,
    ),
    mutant(
        "loops: a step's bits are of a larger trace", LOOPS,
        "number(0.25) / tau, bits", "number(2.0) / tau, bits", KEPT,
    ),
    mutant(
        "bits are read from the wrong end", "engine/bits.py",
        "(packed >> _shifts(packed.device)) & 1", "(packed >> (7 - _shifts(packed.device))) & 1",
        KEPT,
    ),
    mutant(
        "loops: a step that is told h computes it from h", "engine/numba_parts.py",
        "        if told:\n", "        if told and False:\n", KEPT,
    ),
    mutant(
        "steps: h of the step before is taken for the state", STEP,
        '    if neuron.timing == "delayed":\n        return charged\n', "    return charged\n",
        KEPT,
    ),
    mutant(
        "steps: the state is kept beside h of the step before", STEP,
        "state = state if earlier is None else None", "state = state", KEPT,
    ),
    mutant(
        "steps: whatever the neuron resets to now, it did before", STATE,
        "charged is not None and charged.stands_for(state, reset)", "charged is not None", KEPT,
    ),
    mutant(
        "steps: a threshold that was written to is taken for what it was", STATE,
        "(weakref.ref(value), _version(value))", "(weakref.ref(value), 0)", KEPT,
    ),
    mutant(
        "steps: whenever a neuron resets, h is what it resets", STATE,
        "*(neuron.timing, neuron.strict,", "*(0, neuron.strict,", KEPT,
    ),
    mutant(
        "steps: a state whose memory was exchanged is made from what it was", STATE,
        "self.memory == _memory(state) and all(", "all(", KEPT,
    ),
    mutant(
        "steps: h tells a reset that was due before the charge", "engine/plan.py",
        '    return neuron.timing != "both"\n', "    return True\n", KEPT,
    ),
    mutant(
        "a saved model cannot do without numba", "engine/kernels.py",
        'if engine == "torch" or find_spec(engine) is None:', 'if engine == "torch":', FUSED,
    ),
    mutant(
        "checkpoint: a piece starts from the first state", SEQUENCE,
        "start = later._replace(state=state, trace=", "start = later._replace(trace=", ENGINE,
    ),
    mutant(
        "checkpoint: all steps are held", SEQUENCE,
        "self._starts(every or len(self.drive))", "self._starts(len(self.drive))", ENGINE,
    ),
)  # fmt: skip

WALK = "multi_step.py"
STATELESS = "stateless.py"
PARTS = "adapters/parts.py"
SNNTORCH_SEQUENCE = "adapters/snntorch/sequence.py"
SPIKINGJELLY_SEQUENTIAL = "adapters/spikingjelly/sequential.py"
NORSE_SEQUENTIAL = "adapters/norse/sequential.py"
WHOLE_MODELS = (
    mutant(
        "multi_step: hooks are not seen", WALK,
        "hooked = any(getattr(module, hooks, None) for hooks in _HOOKS)", "hooked = False",
        MULTI_ERRORS,
    ),
    mutant(
        "multi_step: a module that comes twice is run once", WALK,
        "[(name, child) for name, child in module._modules.items() if child is not None]",
        "list(module.named_children())", MULTI_ERRORS,
    ),
    mutant(
        "multi_step: a state may be met twice", WALK,
        "        self.held.add(id(module))\n", "", MULTI_ERRORS,
    ),
    mutant(
        "multi_step: what is run in steps forgets its problems", WALK,
        "_Walk(self.loaded, False, self.problems, self.held)",
        "_Walk(self.loaded, False, [], self.held)", MULTI_ERRORS,
    ),
    mutant(
        "multi_step: steps and sequences may be mixed", WALK,
        "    if len(modes) > 1:\n", "    if len(modes) > 2:\n", MULTI_ERRORS,
    ),
    mutant(
        "multi_step: states in the middle are fed on", WALK,
        "elif not part.single and part is not parts[-1]:", "elif False:", MULTI_ERRORS,
    ),
    mutant(
        "multi_step: time and batch are swapped", PARTS,
        "module(x.flatten(0, 1)).unflatten(0, x.shape[:2])",
        "module(x.transpose(0, 1).flatten(0, 1)).unflatten(0, x.shape[:2])", MULTI_STATELESS,
    ),
    mutant(
        "multi_step: a step without a batch is folded", PARTS,
        "        if x.ndim < 3:", "        if x.ndim < 2:", f"{MULTI}::test_steps_without_a_batch",
    ),
    mutant(
        "multi_step: a cell starts anew at every step", PARTS,
        "            out, state = module(step, state)\n",
        "            out, state = module(step, None)\n", MULTI_NATIVE,
    ),
    mutant(
        "stateless: batch norm may be in training", STATELESS,
        "if cls in _BY_BATCH and (module.training or module.running_mean is None):",
        "if cls in _BY_BATCH and module.running_mean is None:", MULTI_ERRORS,
    ),
    mutant(
        "stateless: instance norm's statistics may move", STATELESS,
        "if cls in _BY_INSTANCE and module.training and module.running_mean is not None:",
        "if False:", MULTI_ERRORS,
    ),
    mutant(
        "stateless: a dimension may be the batch's", STATELESS,
        "return first != -1 and not (isinstance(first, int) and first >= 1)", "return False",
        MULTI_STATELESS,
    ),
    mutant(
        "stateless: a parametrization may move", STATELESS,
        "return next(parametrizations.buffers(), None) is not None", "return False", MULTI_ERRORS,
    ),
    mutant(
        "snnTorch's sequence: a reset to zero leaves the synaptic drive", SNNTORCH_NEURONS,
        'return bound_reset(self) != "_base_zero"', "return True", MULTI, count=2,
    ),
    mutant(
        "snnTorch's sequence: the layer holds the state that it had", SNNTORCH_SEQUENCE,
        '    layer._tssl_keep({**last, "mem": result.state}, out)\n', "", MULTI_LEAKY,
    ),
    mutant(
        "snnTorch's sequence: the last reset is a step late", SNNTORCH_SEQUENCE,
        "due = result.out[-2].detach().clone()", "due = result.out[-1].detach().clone()",
        MULTI_LEAKY,
    ),
    mutant(
        "snnTorch's sequence: without delay the last reset is the spike's", SNNTORCH_SEQUENCE,
        "due = layer._tssl_due(result.states[-2])", "due = layer._tssl_due(result.states[-1])",
        MULTI_LEAKY,
    ),
    mutant(
        "snnTorch's sequence: syn does not go on", SNNTORCH_SEQUENCE,
        "            states = {**states, name: kept}\n", "", MULTI,
    ),
    mutant(
        "snnTorch's sequence: syn's graph goes on without a chain", SNNTORCH_SEQUENCE,
        "kept = after[name] if layer._tssl_settings.rule.chain else after[name].detach()",
        "kept = after[name]", f"{MULTI}::test_other_gradients",
    ),
    mutant(
        "SpikingJelly's sequence: the step mode stays", SPIKINGJELLY_SEQUENTIAL,
        '            node.step_mode = "s"\n', "            pass\n",
        f"{MULTI}::test_a_node_is_given_its_step_mode_back",
    ),
    mutant(
        "SpikingJelly's sequence: stored potentials are replaced", SPIKINGJELLY_SEQUENTIAL,
        "return wrapped and not stores and", "return wrapped and", MULTI,
    ),
    mutant(
        "Norse's sequence: states are not passed on", NORSE_SEQUENTIAL,
        "                states[index] = after\n", "                pass\n", MULTI_NATIVE,
    ),
    mutant(
        "Norse's sequence: a cell starts from another state", NORSE,
        "state = self.state_fallback(x[0] if loops else x)", "state = self.state_fallback(x)",
        MULTI,
    ),
    mutant(
        "Norse's sequence: the current after the first step", NORSE,
        "last = drive[-1] if sequence and not kept else drive",
        "last = drive[0] if sequence and not kept else drive", MULTI,
    ),
)  # fmt: skip

BENCH_RUNS = "tests/test_bench_accuracy.py"
BENCH_LATENCY = "tests/test_bench_latency.py"
BENCH_REPORT = "tests/test_bench_report.py"
BENCH_GRADIENTS = "tests/test_bench_gradients.py"
BENCHMARK = (
    mutant(
        "bench: a run's batches start anew after an interruption", "bench/trainer.py",
        "self.progress.batch, None)", "0, None)",
        f"{BENCH_RUNS}::test_interrupted_run_goes_on_exactly",
    ),
    mutant(
        "bench: the learning rate's schedule is not in the checkpoint", "bench/trainer.py",
        'self.schedule.load_state_dict(checkpoint["schedule"])', "pass",
        f"{BENCH_RUNS}::test_interrupted_run_goes_on_exactly",
    ),
    mutant(
        "bench: weights depend on the rule", "bench/runs.py",
        "init_weights(built.model, settings.seed, once)",
        "init_weights(built.model, settings.seed + len(settings.rule), once)",
        f"{BENCH_RUNS}::test_rules_have_one_forward_and_one_start",
    ),
    mutant(
        "bench: native above tau_s = 1 is the library without PSC", "bench/rules.py",
        "if not (contestant(rule).plain and tau_s == 1.0 and not once):",
        "if not (contestant(rule).plain and not once):",
        f"{BENCH_RUNS}::test_rules_have_one_forward_and_one_start",
    ),
    mutant(
        "bench: single spikes are ranked by their number", "bench/workload.py",
        "return scores(self.settings.loss, output)", "return output.sum(0)",
        f"{BENCH_LATENCY}::test_stdbp_learns_digits",
    ),
    mutant(
        "bench: the window's last step is worth nothing", "bench/method.py",
        "torch.arange(len(output), 0, -1,", "torch.arange(len(output) - 1, -1, -1,",
        BENCH_LATENCY,
    ),
    mutant(
        "bench: surrogates go through a reset by 1e9", "bench/rules.py",
        'replace(chosen, reset_path="none")', "chosen",
        f"{BENCH_LATENCY}::test_rules_have_one_forward_and_a_gradient",
    ),
    mutant(
        "bench: a finished run is trained again", "bench/experiment.py",
        "found = (", "found = () and (",
        f"{BENCH_RUNS}::test_results_alone_are_enough_to_repeat_nothing",
    ),
    mutant(
        "bench: an interval is one-sided", "bench/report/tables.py",
        "(1 + CONFIDENCE) / 2", "CONFIDENCE", f"{BENCH_REPORT}::test_means_bests_and_intervals",
    ),
    mutant(
        "bench: differences are of means, not of pairs", "bench/report/tables.py",
        "(mine - reference[which]).dropna()", "mine - reference[which].mean()",
        f"{BENCH_REPORT}::test_differences_are_paired_by_seed",
    ),
    mutant(
        "bench: a dead neuron is one that is silent in any sample", "bench/spread.py",
        "fires.any(0).any(0)", "fires.any(0).all(0)", BENCH_GRADIENTS,
    ),
    mutant(
        "bench: a PSC is taken for its spike", "bench/spread.py",
        "tau_s * psc - (tau_s - 1) * before > 0.5", "psc > 0.5", BENCH_GRADIENTS,
    ),
)  # fmt: skip

SPEED_TESTS = "tests/test_bench_speed.py"
BENCH_SPEED = (
    mutant(
        "bench speed: a ratio upside down", "bench/speed/measure.py",
        "getattr(a, half) / getattr(b, half)", "getattr(b, half) / getattr(a, half)", SPEED_TESTS,
    ),
    mutant(
        "bench speed: no end to the rounds", "bench/speed/measure.py",
        "if number >= FEWEST_ROUNDS and", "if number > rounds and", SPEED_TESTS,
    ),
    mutant(
        "bench speed: the peak so far counts", "bench/speed/memory.py",
        "        CLEAR.write_text(RESET_PEAK)\n", "", SPEED_TESTS,
    ),
    mutant(
        "bench speed: a floor is a ceiling", "bench/speed/floors.py",
        "return figure <= self.bound", "return figure >= self.bound", SPEED_TESTS,
    ),
    mutant(
        "bench speed: what was not measured is missed", "bench/speed/floors.py",
        "floor.met is False", "not floor.met", SPEED_TESTS,
    ),
    mutant(
        "bench speed: the T x T recursion's chain has no reset term", "bench/speed/quadratic.py",
        " + (1 - decay) * charged * slope", "", SPEED_TESTS,
    ),
    mutant(
        "bench speed: the T x T recursion has no fallback", "bench/speed/quadratic.py",
        "silent = psc < 1 / (4 * tau_s)", "silent = psc < 0", SPEED_TESTS,
    ),
    mutant(
        "bench speed: wrapped layers are not", "bench/speed/contestants.py",
        "yield Contestant(named(engine, tau), wrapped, work.run)",
        "yield Contestant(named(engine, tau), first, work.run)", SPEED_TESTS,
    ),
)  # fmt: skip

MUTANTS = (
    *BENCH_SPEED,
    *COMPILED,
    *WHOLE_MODELS,
    *FURTHER_RULES,
    *BENCHMARK,
    *ADJOINTS,
    *PARAMETERS,
    *RULES,
    *PSC,
    *LINKS,
    *TRACES,
    *LIBRARIES,
    *NORSE_FAMILIES,
    *WRAPPING,
    *LOSS_FUNCTIONS,
)
