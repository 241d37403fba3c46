"""Names of rules as a report shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from tssl_adapters.bench.observer import Record


def short(names: Iterable[str]) -> dict[str, str]:
    """The user's own rules without their file's folder, if they stay distinct."""
    known = list(dict.fromkeys(names))
    files = Counter(name.rpartition("/")[2] for name in known)
    return {name: file if files[file := name.rpartition("/")[2]] == 1 else name for name in known}


def of_records(records: Sequence[Record]) -> list[Record]:
    """Lines of results with short names."""
    names = short(record["rule"] for record in records)
    return [{**record, "rule": names[record["rule"]]} for record in records]


def of_gradients(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The return value of ``bench.gradients.compare`` with short names."""
    names = short(rule for group in groups for rule in group["rules"])
    return [
        {
            **group,
            "rules": [names[rule] for rule in group["rules"]],
            "norm": {names[rule]: value for rule, value in group["norm"].items()},
            "drive_norm": {names[rule]: value for rule, value in group["drive_norm"].items()},
        }
        for group in groups
    ]
