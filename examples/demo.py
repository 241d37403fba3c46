"""Train a small network in each library, natively and under two rules, and print one table.

The network, the images and the first weights are the same nine times; only the library that runs
the neurons and the gradient they have differ.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import common
import train_with_norse
import train_with_snntorch
import train_with_spikingjelly
from rich.console import Console
from rich.table import Table

Main = Callable[[Sequence[str]], list[common.Record]]

LIBRARIES: dict[str, Main] = {
    "snnTorch": train_with_snntorch.main,
    "SpikingJelly": train_with_spikingjelly.main,
    "Norse": train_with_norse.main,
}
RULES = {
    "native": "native surrogate",
    "smooth-tsslbp": "SmoothTSSLBP, the default",
    "tsslbp": "TSSL-BP",
}
EPOCHS = 5
# One thread: more of them gain little here, and lose much where the cores are shared.
OPTIONS = f"--data mnist5k --network 400-400 --epochs {EPOCHS} --threads 1 --quiet".split()


def main() -> None:
    """Run all nine and print the table."""
    console = Console()
    table = Table(title=f"MNIST, 4000 images, 784-400-400-10, 5 time steps, {EPOCHS} epochs")
    for heading in ("library", "rule"):
        table.add_column(heading)
    for heading in ("test accuracy", "seconds per epoch"):
        table.add_column(heading, justify="right")
    with TemporaryDirectory() as folder, console.status("") as status:
        checkpoint = ["--checkpoint", str(Path(folder) / "demo.pt")]
        for library, train in LIBRARIES.items():
            for rule, description in RULES.items():
                status.update(f"{library}: {description}")
                records = train([*OPTIONS, *checkpoint, "--rule", rule])
                seconds = sum(record["seconds"] for record in records) / len(records)
                accuracy = records[-1]["test_accuracy"]
                table.add_row(library, description, f"{accuracy:.1%}", f"{seconds:.2f}")
            table.add_section()
    console.print(table)


if __name__ == "__main__":
    main()
