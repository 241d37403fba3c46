"""Train on several processes, with SpikingJelly and PyTorch's DistributedDataParallel.

torchrun --nproc-per-node 2 examples/train_distributed.py --dtype float64
torchrun --nproc-per-node 1 examples/train_distributed.py --dtype float64 --batch-size 100

Wrap first, then hand the model to DistributedDataParallel: the gradients of all processes are
averaged as natively, so that N processes with batches of B images train as one with N B would:
the two commands print the same.
"""

import argparse
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import tssl_adapters
from tssl_adapters.bench.data import Data, load


def build_network(num_pixels: int, rule: str, tau_s: float) -> nn.Module:
    """``[T, batch, pixels]`` to ``[T, batch, 10]``; every process draws the same weights."""
    torch.manual_seed(0)
    model = nn.Sequential(
        layer.Linear(num_pixels, 400, bias=False),
        neuron.LIFNode(tau=5.0, decay_input=False),
        layer.Linear(400, 10, bias=False),
        neuron.LIFNode(tau=5.0, decay_input=False),
    )
    functional.set_step_mode(model, "m")
    return model if rule == "native" else tssl_adapters.wrap(model, rule=rule, tau_s=tau_s)


def spike_counts(model: nn.Module, pixels: Tensor, args: argparse.Namespace) -> Tensor:
    """Output summed over time, from rest: ``[batch, 10]``."""
    functional.reset_net(model)
    x = pixels.flatten(1).to(args.device, args.dtype).div(255.0)
    counts: Tensor = model(x.expand(args.time_steps, *x.shape)).sum(0)
    return counts


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: DataLoader,
    args: argparse.Namespace,
) -> None:
    """One pass over this process's share of the images."""
    for pixels, labels in batches:
        counts = spike_counts(model, pixels, args)
        loss = F.cross_entropy(counts, labels.to(args.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, args: argparse.Namespace) -> float:
    """The accuracy on all test images."""
    counts = spike_counts(model, data.test_images, args)
    return float((counts.argmax(1).cpu() == data.test_labels).float().mean())


def main() -> None:
    """Run one of the processes that torchrun starts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=["digits", "mnist5k", "fashion-mnist"], default="mnist5k")
    parser.add_argument(
        "--rule",
        choices=["native", "smooth-tsslbp", "tsslbp"],
        default="smooth-tsslbp",
        help="native: SpikingJelly's own gradient, at --tau-s 1 alone (default: %(default)s)",
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=50, help="of each process")
    parser.add_argument("--time-steps", type=int, default=5)
    parser.add_argument("--tau-s", type=float, default=1.0)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    args = parser.parse_args()
    args.dtype = getattr(torch, args.dtype)
    if args.rule == "native" and args.tau_s != 1:
        parser.error("--rule native emits spikes; train it at --tau-s 1")

    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    args.device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else "cpu"
    data = load(args.data, None, args.time_steps)
    model = build_network(data.num_pixels, args.rule, args.tau_s).to(args.device, args.dtype)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=5e-4)
    train_set = TensorDataset(data.train_images, data.train_labels)
    sampler = DistributedSampler(train_set)
    batches = DataLoader(train_set, args.batch_size, sampler=sampler)
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        train_epoch(parallel, optimizer, batches, args)
        if dist.get_rank() == 0:
            print(f"epoch {epoch + 1}: test accuracy {accuracy(model, data, args):.2%}", flush=True)
    dist.barrier()  # the first process is still testing
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
