"""In-place acceleration of models people already have; ``bigkernels.accelerate`` and ``bigkernels.verify``."""
