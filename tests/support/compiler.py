"""A front end of torch.compile that has seen nothing."""

import gc

import torch


def forget() -> None:
    """Let torch.compile and strict export start anew.

    They walk through SpikingJelly's table of models that were reset, whose keys are weak: a model
    of an earlier test that is collected meanwhile ends them with "dictionary changed size".
    """
    torch._dynamo.reset()
    gc.collect()
