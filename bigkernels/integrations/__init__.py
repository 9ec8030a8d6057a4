"""In-place acceleration of models people already have."""

from bigkernels.integrations.accelerate import Handle, Report, accelerate, restore
from bigkernels.integrations.verify import Check, Verification, verify

__all__ = ["Check", "Handle", "Report", "Verification", "accelerate", "restore", "verify"]
