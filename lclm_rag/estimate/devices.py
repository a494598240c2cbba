"""GPUs and what renting one costs, as they stand in devices.toml beside this file, with their sources."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["GPUS", "Gpu"]


@dataclass(frozen=True)
class Gpu:
    """flops: per second, dense bfloat16. memory: bytes. bandwidth: bytes per second. All at their peak."""

    name: str
    flops: float
    memory: float
    bandwidth: float
    dollars_per_hour: float

    def hours(self, flops: float, utilization: float) -> float:
        """utilization: share of the peak that is reached, above 0 and at most 1."""
        if not 0 < utilization <= 1:
            raise ValueError(f"utilization is a share, above 0 and at most 1, not {utilization}.")
        return flops / (self.flops * utilization) / 3600


_TABLE = tomllib.loads(Path(__file__).with_name("devices.toml").read_text("utf-8"))
GPUS = {entry["name"]: Gpu(**entry) for entry in _TABLE["gpu"]}
