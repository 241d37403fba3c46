"""Learning rules. A rule is a small frozen object; a new one is one file in this folder."""

from tssl_adapters.rules.base import Feedback, Rule, Step, Window
from tssl_adapters.rules.eventprop import EventProp
from tssl_adapters.rules.lee import Lee
from tssl_adapters.rules.native import Native
from tssl_adapters.rules.smooth import SmoothTSSLBP
from tssl_adapters.rules.stdbp import STDBP
from tssl_adapters.rules.strsbp import STRSBP
from tssl_adapters.rules.surrogate import SurrogateGradient
from tssl_adapters.rules.tsslbp import TSSLBP

BY_NAME: dict[str, type[Rule]] = {
    "native": Native,
    "smooth-tsslbp": SmoothTSSLBP,
    "tsslbp": TSSLBP,
    "lee": Lee,
    "stdbp": STDBP,
    "strsbp": STRSBP,
    "eventprop": EventProp,
}
"""Rules that need no argument, by their names in ``wrap(model, rule=...)``."""

__all__ = [
    "BY_NAME",
    "STDBP",
    "STRSBP",
    "TSSLBP",
    "EventProp",
    "Feedback",
    "Lee",
    "Native",
    "Rule",
    "SmoothTSSLBP",
    "Step",
    "SurrogateGradient",
    "Window",
]
