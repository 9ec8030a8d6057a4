"""In-place acceleration of models people already have."""

from bigkernels.integrations.accelerate import Handle, Report, accelerate, restore

__all__ = ["Handle", "Report", "accelerate", "restore"]
