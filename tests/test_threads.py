"""Threads of the CPU kernels: they run, they obey torch, they survive a fork, they do not change a bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

import bigkernels as bk
from bigkernels import library

pytestmark = pytest.mark.skipif(
    library.extension_error is not None, reason=str(library.extension_error)
)

# Nanoseconds each thread of this process spent running, in a process that does nothing else.
BUSY_THREADS = """
import json, pathlib, sys, torch
import bigkernels as bk
torch.set_num_threads(int(sys.argv[1]))
x = torch.ones(4096, 768)
def spent():
    tasks = pathlib.Path("/proc/self/task").iterdir()
    return {t.name: int((t / "schedstat").read_text().split()[0]) for t in tasks}
bk.layer_norm(x, (768,), backend="cpu")
before = spent()
for _ in range(100):
    bk.layer_norm(x, (768,), backend="cpu")
after = spent()
gomp = {l.split()[-1] for l in open("/proc/self/maps") if "libgomp" in l}
print(json.dumps([[after[t] - before.get(t, 0) for t in after], sorted(gomp)]))
"""


def busy_threads(num_threads: int) -> tuple[int, list[str]]:
    """Threads that took at least a tenth of the busiest one's time, and the OpenMP runtimes loaded."""
    done = subprocess.run(
        [sys.executable, "-c", BUSY_THREADS, str(num_threads)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    spent, runtimes = json.loads(done.stdout)
    return sum(t > max(spent) / 10 for t in spent), runtimes


needs_proc = pytest.mark.skipif(
    not os.path.exists("/proc/self/task"), reason="no /proc: threads cannot be told apart"
)


@needs_proc
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one CPU")
def test_two_threads_share_the_work_of_one_openmp_runtime() -> None:
    threads, runtimes = busy_threads(2)
    assert threads == 2
    assert len(runtimes) == 1, runtimes


@needs_proc
def test_set_num_threads_is_obeyed() -> None:
    assert busy_threads(1)[0] == 1


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def work(x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    weight = torch.linspace(0.5, 1.5, x.shape[-1], requires_grad=True)
    out = bk.layer_norm(x, x.shape[-1:], weight, backend="cpu")
    out.square().sum().backward()
    assert x.grad is not None and weight.grad is not None
    return torch.cat([out.detach().flatten(), x.grad.flatten(), weight.grad])


class Normalized(torch.utils.data.Dataset):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return bk.layer_norm(self.x, self.x.shape[-1:], backend="cpu")


def test_a_forked_worker_does_not_wait_for_its_parents_threads(two_threads) -> None:
    # torch's own operations would wait for ever here, hence nothing but the kernel in the worker.
    x = torch.randn(512, 256)
    expected = bk.layer_norm(x, (256,), backend="cpu")  # from here on the parent has its threads
    loader = torch.utils.data.DataLoader(
        Normalized(x),
        num_workers=1,
        multiprocessing_context="fork",
        worker_init_fn=lambda _: torch.set_num_threads(2),
        collate_fn=lambda samples: samples[0],
        timeout=60,
    )
    for result in loader:
        assert torch.equal(result, expected)


def test_python_threads_agree(two_threads) -> None:
    x = torch.randn(300, 200)
    expected = work(x)
    results: list[Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(work(x))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8 and all(torch.equal(result, expected) for result in results)


def test_the_number_of_threads_changes_no_bit(two_threads) -> None:
    x = torch.randn(1000, 201)
    two = work(x)
    torch.set_num_threads(1)
    assert torch.equal(work(x), two)
