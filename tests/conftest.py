"""The `device` fixture: one test body runs on every backend there is.

cpu = the C++ kernels; emulated-sm_80 and -sm_90 = the CUDA C++ and the Triton kernels on an emulated GPU,
on CPU tensors (tests/emulator); interpreted = the Triton kernels in Triton's interpreter, where
TRITON_INTERPRET=1 asks for it; cuda and cuda-triton = both kinds of kernels on a GPU. What a backend
refuses is skipped with its own reasons.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import unittest.mock
import zlib
from collections.abc import Iterator

import pytest
import torch

from bigkernels import backends
from bigkernels.ops import triton_launch
from bigkernels.ops.attention import arguments, triton_config
from bigkernels.ops.attention import triton as attention_drawer
from bigkernels.testing import Case, oracle
from tests.emulator.core import Options
from tests.emulator.device import Emulation, emulated, why_not

HAS_GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Elements of one tensor beyond which a case is left to `make test-full`, or to a GPU.
INTERPRETED_ELEMENTS = 14_000
EMULATED_ELEMENTS, EMULATED_ELEMENTS_FULL = 14_000, 1_000_000
# Orders of warps and blocks that a case is run under by `make test-full`.
EMULATED_SEEDS = (1, 2, 3)


@dataclasses.dataclass(frozen=True)
class Device:
    """A backend on a kind of device: what to pass as `backend=`, and where the tensors live.

    architecture: of the emulated GPU, 80 or 90; 0 if the device is none.
    """

    name: str
    type: str
    backend: str
    architecture: int = 0
    emulation: Emulation | None = None
    full: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def slow(self) -> bool:
        """Whether a kernel takes a thousand times as long here as on the device it is made for."""
        return self.architecture > 0 or self.name == "interpreted"

    @property
    def compiles(self) -> bool:
        """Whether kernels have to be built for each kind of call, in a run that has to be short."""
        return self.architecture > 0 and self.backend == "triton" and not self.full

    def require(self, room: str, facts, elements: int = 0, turn: int = 90) -> None:
        """Skips the test, with the reasons, unless this backend takes calls of these facts.

        turn: the emulated architecture that a call of Triton attention is run on, but by `make test-full`.
        """
        reasons = backends.refusals(room, self.backend, facts, forced=True)
        if reasons:
            pytest.skip(f"{self.name}: {'; '.join(reasons)}")
        limit = EMULATED_ELEMENTS_FULL if self.full else EMULATED_ELEMENTS
        if self.architecture and elements > limit:
            pytest.skip(f"{self.name}: too large for the emulator")
        if room == "attention" and self.compiles and self.architecture != turn:
            pytest.skip(f"{self.name}: its turn is on the other architecture")
        if self.name == "interpreted" and elements > INTERPRETED_ELEMENTS:
            pytest.skip("interpreted: too large for the interpreter")

    def one_pass(self, case: Case) -> bool:
        """Whether its backward may sum in no order."""
        if self.backend != "triton" or case.room != "attention":
            return False
        return arguments.one_pass(case.facts(self.type))

    def check(self, case: Case) -> dict[str, torch.Tensor]:
        """The oracle's verdict of a case on this backend; skips what the backend refuses."""
        self.require(case.room, case.facts(self.type), case.elements, turn(case))
        for seed in EMULATED_SEEDS[1:] if self.full else ():
            self.emulation.options = Options(seed=seed)
            oracle.check(case, self.backend, self.type)
        number = zlib.crc32(case.id.encode()) // 2
        if (self.full or number % 4 == 1) and self.one_pass(case):
            with one_pass():
                found = oracle.check(case, self.backend, self.type, unordered=UNORDERED)
            if not self.full:
                return found
        if self.full or number % 2:
            with no_short_kernel():
                return oracle.check(case, self.backend, self.type)
        return oracle.check(case, self.backend, self.type)


def turn(case: Case) -> int:
    """The emulated architecture of a case for which Triton has to compile kernels of its own."""
    return (80, 90)[zlib.crc32(case.id.encode()) % 2]


@contextlib.contextmanager
def no_short_kernel() -> Iterator[None]:
    """Inside, the backward of short sequences in Triton goes as that of long ones: both are to be tested on
    what a test has the time for."""
    patch = unittest.mock.patch.object
    with (
        patch(triton_config, "short", return_value=None),
        patch(attention_drawer, "_BACKWARD", triton_launch.Replays()),
    ):
        yield


# What one pass adds up in no order, unless torch's deterministic algorithms are asked for.
UNORDERED = ("dq",)


@contextlib.contextmanager
def one_pass() -> Iterator[None]:
    """Inside, the backward of all sequences in Triton goes as that of long ones without torch's deterministic
    algorithms, which the oracle needs for its poisoned memory."""
    patch = unittest.mock.patch.object
    with no_short_kernel(), patch(triton_launch, "deterministic", return_value=False):
        yield


DEVICES = (
    Device("cpu", "cpu", "cpu"),
    Device("interpreted", "cpu", "triton"),
    Device("emulated-sm_80", "cpu", "cuda", 80),
    Device("emulated-sm_90", "cpu", "cuda", 90),
    Device("emulated-sm_80-triton", "cpu", "triton", 80),
    Device("emulated-sm_90-triton", "cpu", "triton", 90),
    Device("cuda", "cuda", "cuda"),
    Device("cuda-triton", "cuda", "triton"),
)


def _why_not(device: Device) -> str | None:
    if device.type == "cuda" and not HAS_GPU:
        return "no CUDA device"
    if device.name == "interpreted" and not INTERPRETED:
        return "interpreted: only with TRITON_INTERPRET=1"
    if device.architecture and HAS_GPU:
        return "emulated: there is a GPU here"
    if device.architecture and (reason := why_not(device.backend)):
        return f"emulated: {reason}"
    return None


def _usable(device: Device):
    reason = _why_not(device)
    marks = [pytest.mark.skip(reason=reason)] if reason else []
    return pytest.param(device, id=device.name, marks=marks)


@pytest.fixture(params=[_usable(device) for device in DEVICES])
def device(request):
    device = request.param
    if not device.architecture:
        yield device
        return
    full = request.config.getoption("-m") != "not full"
    with emulated(device.architecture, device.backend) as emulation:
        yield dataclasses.replace(device, emulation=emulation, full=full)


@pytest.fixture
def sm_80():
    """An emulated GPU for Triton kernels, whatever runs on it."""
    if reason := why_not("triton"):
        pytest.skip(f"emulated: {reason}")
    with emulated(80, "triton") as emulation:
        yield emulation


def pytest_configure(config):
    # Triton 3.6's interpreter, one warning a kernel launch; nothing here can change it.
    warning = "ignore:Conversion of an array:DeprecationWarning:triton.runtime.interpreter"
    config.addinivalue_line("filterwarnings", warning)
    if INTERPRETED and triton_launch.MISSING is None:
        from tests import quick_interpreter

        quick_interpreter.install()


LISTED = [
    re.compile(line)
    for line in (pathlib.Path(__file__).parent / "skips.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
_unlisted: set[str] = set()


def pytest_runtest_logreport(report):
    """Notes skips whose reason tests/skips.txt does not list: a test must not vanish unseen."""
    # pytest-xdist's workers send the tuple of a skip as a list.
    if report.skipped and isinstance(report.longrepr, (tuple, list)):
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


@pytest.fixture
def matmul_precision():
    """torch.set_float32_matmul_precision, undone."""
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
