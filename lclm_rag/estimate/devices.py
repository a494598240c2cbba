"""GPUs and what renting one costs, from devices.toml beside this file, which names the sources."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["GPUS", "Gpu"]


@dataclass(frozen=True)
class Gpu:
    """A GPU; its figures are peak values.

    Attributes:
        name: The GPU's name.
        flops: FLOPs per second, dense bfloat16.
        memory: Bytes.
        bandwidth: Bytes per second.
        dollars_per_hour: What renting one costs.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    dollars_per_hour: float

    def hours(self, flops: float, utilization: float) -> float:
        """How long this GPU takes for a number of FLOPs.

        Args:
            flops: The FLOPs to compute.
            utilization: Share of the peak that is reached, above 0 and at most 1.

        Returns:
            The time in hours.

        Raises:
            ValueError: When `utilization` is not such a share.
        """
        if not 0 < utilization <= 1:
            raise ValueError(f"utilization is a share, above 0 and at most 1, not {utilization}.")
        return flops / (self.flops * utilization) / 3600


_TABLE = tomllib.loads(Path(__file__).with_name("devices.toml").read_text("utf-8"))
GPUS = {entry["name"]: Gpu(**entry) for entry in _TABLE["gpu"]}
