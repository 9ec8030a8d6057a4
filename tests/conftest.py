"""The `device` fixture: one test body runs on every backend there is.

cpu = the C++ kernels; emulated = the Triton kernels in Triton's interpreter, on CPU tensors; cuda and
cuda-triton = both kinds of kernels on a GPU. What a backend refuses is skipped with its own reasons.
"""

import os
import pathlib
import re
from dataclasses import dataclass

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
# Read when triton, and with it a kernel, is first imported. On a GPU it would take the kernels off it.
if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")

from bigkernels import backends  # noqa: E402
from bigkernels.testing import Case, oracle  # noqa: E402

# Elements of one tensor beyond which the interpreter takes seconds a case.
EMULATED_ELEMENTS = 14_000


@dataclass(frozen=True)
class Device:
    """A backend on a kind of device: what to pass as `backend=`, and where the tensors live."""

    name: str
    type: str
    backend: str

    def __str__(self) -> str:
        return self.name

    def require(self, room: str, facts, elements: int = 0) -> None:
        """Skips the test, with the reasons, unless this backend takes calls of these facts."""
        reasons = backends.refusals(room, self.backend, facts, forced=True)
        if reasons:
            pytest.skip(f"{self.name}: {'; '.join(reasons)}")
        if self.name == "emulated" and elements > EMULATED_ELEMENTS:
            pytest.skip("emulated: too large for the interpreter")

    def check(self, case: Case) -> dict[str, torch.Tensor]:
        """The oracle's verdict of a case on this backend; skips what the backend refuses."""
        self.require(case.room, case.facts(self.type), case.elements)
        return oracle.check(case, self.backend, self.type)


DEVICES = (
    Device("cpu", "cpu", "cpu"),
    Device("emulated", "cpu", "triton"),
    Device("cuda", "cuda", "cuda"),
    Device("cuda-triton", "cuda", "triton"),
)


def _usable(device: Device):
    if device.type == "cuda" and not HAS_GPU:
        return pytest.param(device, id=device.name, marks=pytest.mark.skip(reason="no CUDA device"))
    if device.name == "emulated" and HAS_GPU and os.environ.get("TRITON_INTERPRET") != "1":
        skip = pytest.mark.skip(reason="emulated: Triton runs on the GPU here")
        return pytest.param(device, id=device.name, marks=skip)
    return pytest.param(device, id=device.name)


@pytest.fixture(params=[_usable(device) for device in DEVICES])
def device(request) -> Device:
    return request.param


def pytest_configure(config):
    # Triton 3.6's interpreter, one warning a kernel launch; nothing here can change it.
    warning = "ignore:Conversion of an array:DeprecationWarning:triton.runtime.interpreter"
    config.addinivalue_line("filterwarnings", warning)


LISTED = [
    re.compile(line)
    for line in (pathlib.Path(__file__).parent / "skips.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
_unlisted: set[str] = set()


def pytest_runtest_logreport(report):
    """Notes skips whose reason tests/skips.txt does not list: a test must not vanish unseen."""
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not any(pattern.fullmatch(reason) for pattern in LISTED):
            _unlisted.add(f"{report.nodeid}: {reason}")


pytest_collectreport = pytest_runtest_logreport


def pytest_sessionfinish(session):
    if _unlisted and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    for line in sorted(_unlisted):
        terminalreporter.line(f"SKIPPED for a reason not in tests/skips.txt: {line}", red=True)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
