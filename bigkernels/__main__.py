"""``python -m bigkernels``: the same as the ``bigkernels`` command."""

import sys

from bigkernels.cli import main

if __name__ == "__main__":
    sys.exit(main())
