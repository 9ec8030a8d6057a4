"""Cases, oracle, canaries and clocks: what the tests and benchmarks of this package use, for
anyone's use."""

from bigkernels.testing.canary import Canary, poisoned_outputs
from bigkernels.testing.cases import Case, cases
from bigkernels.testing.oracle import Verdict, check, expect, judge
from bigkernels.testing.problem import Problem
from bigkernels.testing.timing import Timing, interleave

__all__ = [
    "Canary",
    "Case",
    "Problem",
    "Timing",
    "Verdict",
    "cases",
    "check",
    "expect",
    "interleave",
    "judge",
    "poisoned_outputs",
]
