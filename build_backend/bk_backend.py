"""PEP 517 backend: setuptools, with the torch that is already installed.

torch is not a build requirement: pip's isolated environment would download gigabytes of the newest
one. setup.py finds headers and libraries in the environment being installed into instead; with no
torch there, the package is built without native code and says so.
"""

from __future__ import annotations

import glob
import shutil
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403


def build_wheel(
    wheel_directory: str,
    config_settings: Any = None,
    metadata_directory: str | None = None,
) -> str:
    """Build a wheel, never with files that an earlier build left in build/lib*."""
    for folder in glob.glob("build/lib*"):
        shutil.rmtree(folder)
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
