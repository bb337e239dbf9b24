"""Peak memory, counted operation by operation, so that the figure is the same on every run."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["LiveBytes"]


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operations make until they are freed: `peak` is the most bytes that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self.known = 0, 0, WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in tree_leaves((args, kwargs)):
            if isinstance(given, Tensor):
                self.known[given.untyped_storage()] = True  # made before the count began, or counted already
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and made.untyped_storage() not in self.known:
                storage = made.untyped_storage()
                self.known[storage] = True
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return out

    def _free(self, num_bytes: int) -> None:
        self.live -= num_bytes
