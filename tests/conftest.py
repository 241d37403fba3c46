"""The suite tests plain torch, which compiles nothing, unless it is told otherwise."""

import os

os.environ.setdefault("TSSL_ADAPTERS_ENGINE", "torch")
