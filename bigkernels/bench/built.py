"""What a peer hands over once it is set up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from .encoders import Array, Batch

Forward = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Built:
    """An encoder ready to run.

    configuration: how it was set up, one line. version: of its library. prepare: a batch to what is
    timed, which gives the last hidden state. numpy: that result to a float32 array (B, L, E).
    step: a batch to one training step (forward, backward, optimizer); forward_step: its forward
    alone, which keeps what backward needs. None where the peer only infers.
    """

    configuration: str
    version: str
    prepare: Callable[[Batch], Forward]
    numpy: Callable[[Any], Array]
    step: Callable[[Batch], Forward] | None = None
    forward_step: Callable[[Batch], Forward] | None = None
