"""Steps as graphs, run by threads that exchange statistics as processes do: many steps without a process to start."""

import threading

import torch
from torch import fx

from fqt_deploy.distributed.statistics import exchange_statistics

fqt = torch.ops.fqt

SUMS = {fqt.synchronize_moments.default: 0, fqt.synchronize_sums.default: 2, fqt.synchronize_kept_sums.default: 2}


class Threads:
    """Threads in the place of processes: each has a message, and all get the sum.

    Attributes:
        messages: how many each thread has sent.
    """

    def __init__(self, size):
        self._parts, self._barrier = [None] * size, threading.Barrier(size, timeout=60)
        self.messages = [0] * size

    def add_up(self, rank, message):
        """Replaces ``message`` by the sum of those of all threads."""
        self._parts[rank] = message.clone()
        self.messages[rank] += 1
        self._barrier.wait()
        message.copy_(sum(self._parts))
        self._barrier.wait()

    def run(self, work):
        """What ``work`` returns in each thread, which is given its number."""
        found = [None] * len(self.messages)

        def one(rank):
            try:
                found[rank] = work(rank)
            except BaseException:
                self._barrier.abort()
                raise

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(found))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


class Process(fx.Interpreter):
    """Runs the graph of a step; where a compiled step exchanges statistics, this does, too."""

    def __init__(self, module, threads, rank):
        super().__init__(module)
        self._threads, self._rank = threads, rank

    def run_node(self, n):
        """Kernels write contiguous results, whatever PyTorch's strides are."""
        return torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.contiguous, super().run_node(n))

    def call_function(self, target, args, kwargs):
        values = super().call_function(target, args, kwargs)
        if target in SUMS:
            count = SUMS[target]
            exchange_statistics(
                args[-1], values[:count], values[count:], lambda message: self._threads.add_up(self._rank, message)
            )
        return values
