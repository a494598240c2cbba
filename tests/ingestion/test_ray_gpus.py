"""What an encoder on Ray asks for: a GPU only where it uses one."""

from __future__ import annotations

from types import SimpleNamespace

from lclm_rag import RayEngine
from lclm_rag.ingestion.ray.engine import _gpus

EIGHT_GPUS = SimpleNamespace(cluster_resources=lambda: {"GPU": 8.0, "CPU": 64.0})


def test_encoders_on_the_cpu_reserve_no_gpu() -> None:
    assert _gpus(EIGHT_GPUS, RayEngine(), "cpu") == 0
    assert _gpus(EIGHT_GPUS, RayEngine(), "auto") == 1
    assert _gpus(EIGHT_GPUS, RayEngine(gpus=0.5), "cuda") == 0.5
    assert _gpus(EIGHT_GPUS, RayEngine(gpus=1), "cpu") == 1  # It was asked for.
