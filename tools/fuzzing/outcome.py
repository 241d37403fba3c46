"""The outcome of a case, and the script that shows it."""

from __future__ import annotations

from dataclasses import dataclass, field

from fuzzing.case import Case
from fuzzing.script import body, wrapping


@dataclass(frozen=True)
class Failure:
    """A difference between the native layer, the wrapped one and the recursion.

    Attributes:
        kind: what differs.
        text: by how much.
        ending: the end of the script that shows the difference.
    """

    kind: str
    text: str
    ending: str


@dataclass
class Verdict:
    """The outcome of a case, in a few words that many cases share."""

    outcome: str
    failure: Failure | None = None
    notes: list[str] = field(default_factory=list)


class DiffersError(Exception):
    """Two of the three differ."""

    def __init__(self, kind: str, text: str, ending: str) -> None:
        super().__init__(text)
        self.failure = Failure(kind, text, ending)


_ENDINGS = {
    "refusal": """
layer = make()
print(tssl_adapters.inspect(layer, rule={rule}, tau_s={tau_s}))
{wrap}""",
    "exception": """
def tried(layer):
    try: {autocast}torch.autograd.grad(loss(run(layer)), {leaf}, allow_unused=True); return None
    except Exception as error: return type(error).__name__, str(error)
layer = make(); native = tried(layer)
layer = make(); {wrap}
ours = tried(layer); print(native, ours, sep="\\n"); assert native == ours""",
    "forward": """
{autocast}theirs = run(make())
layer = make(); {wrap}
{autocast}ours = run(layer)
a, b = theirs[{key}], ours[{key}]; print(a, b); assert a.dtype == b.dtype and torch.equal(a, b)""",
    "trace": """
{autocast}theirs = run(make())
layer = make(); {wrap}
{autocast}ours = run(layer)
a = 0.0
for t in range({steps}): a = a + ((theirs["out", t] != 0).to(theirs["out", t]) - a) / {tau_s}
print(a, ours["out", {steps} - 1])""",
    "again": """
layer = make(); {wrap}
def both():
    {autocast}seen = run(layer)
    leaves = [x, *start.values(), *layer.parameters()]
    grads = torch.autograd.grad(loss(seen), [p for p in leaves if p.requires_grad],
                                allow_unused=True)
    return seen, grads
first, second = both(), both()
print({key!r}, first, second, sep="\\n")
assert all(torch.equal(a, second[0][k]) for k, a in first[0].items())
assert all(a is b or torch.equal(a, b) for a, b in zip(first[1], second[1]))""",
    "gradient": """
layer = make(); {wrap}
{autocast}found, = torch.autograd.grad(loss(run(layer)), {leaf}, allow_unused=True)
found = torch.zeros_like({leaf}) if found is None else found
print(found{index}, "not", {expected})
assert abs(float(found{index}) - {expected}) <= {allowed}""",
}


def ending(case: Case, kind: str, **more: object) -> str:
    """The end of a script that shows a kind of failure."""
    autocast = "with torch.autocast('cpu', torch.bfloat16): " if case.autocast else ""
    return _ENDINGS[kind].format(
        rule=case.rule, tau_s=case.tau_s, wrap=wrapping(case), autocast=autocast, **more
    )


def script(case: Case, failure: Failure) -> str:
    """A failure as a self-contained program."""
    return body(case) + failure.ending.strip() + "\n"
