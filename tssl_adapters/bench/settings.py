"""What the result of a run depends on: its settings."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

from tssl_adapters.bench.known import LATENCY

Schedule = Literal["constant", "cosine"]
OF_THE_RULE = ("rule", "definition")
"""The settings in which compared runs may differ."""


@dataclass(frozen=True)
class Settings:
    """One run.

    Attributes:
        library: the name of the library's distribution.
        data: the data set's name.
        network: hidden layers, such as 400-400.
        rule: the rule's name.
        tau_s: synaptic time constant, in time steps.
        loss: the loss's name.
        time_steps: the number of time steps, T.
        batch_size: samples per batch.
        lr: AdamW's learning rate.
        schedule: of the learning rate: ``constant``, or ``cosine``, to 0 after the last epoch.
        epochs: the total number.
        seed: for the weights and the order of samples.
        limit: train and test on the first samples only.
        validation: how many of the last training samples replace the test set.
        definition: what a user's own rule is: ``bench.rules.definition``.
    """

    library: str
    data: str
    network: str
    rule: str
    tau_s: float
    loss: str
    time_steps: int
    batch_size: int
    lr: float
    epochs: int
    seed: int
    limit: int | None = None
    schedule: Schedule = "constant"
    validation: int | None = None
    definition: str = ""

    def fixed(self) -> dict[str, Any]:
        """The settings that a checkpoint must match; epochs can be added if the schedule does not
        depend on their number.
        """
        settings = asdict(self)
        if self.schedule == "constant":
            del settings["epochs"]
        return settings

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The values for a checkpoint that predates a setting."""
        return {field.name: field.default for field in fields(cls) if field.default is not MISSING}

    def recorded(self) -> dict[str, Any]:
        """The fields that every line of the results begins with."""
        own = {"definition": self.definition} if self.definition else {}
        return {
            "library": self.library,
            "library_version": version(self.library),
            "rule": self.rule,
            "tau_s": self.tau_s,
            "data": self.data,
            "network": self.network,
            "seed": self.seed,
            **own,
        }

    def shared(self) -> tuple[Any, ...]:
        """What runs have in common that differ only in their rule."""
        return tuple(value for name, value in asdict(self).items() if name not in OF_THE_RULE)

    @property
    def once(self) -> bool:
        """Whether inputs and neurons fire once."""
        return self.loss == LATENCY

    @property
    def name(self) -> str:
        """What distinguishes the run from others of an experiment."""
        rule = self.rule
        if self.definition:  # the rule then names a file
            path, _, name = rule.rpartition(":")
            rule = f"{Path(path).stem}.{name}-{crc32(rule.encode()):08x}"
        parts = (self.library, self.data, self.network, rule, f"{self.tau_s:g}", self.loss)
        return "-".join((*parts, str(self.seed)))
