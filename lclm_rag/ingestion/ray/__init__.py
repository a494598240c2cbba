"""Run the compressor over a corpus on a Ray cluster.

The driver (`engine`) hands a job to workers (`workers`): readers make rows of passages (`work_rows`),
encoders write fragments of them and report (`reports`), and the driver commits once what all reports come to.
A worker that dies leaves a note of what it was at (`attempts`).
"""

from lclm_rag.ingestion.ray.engine import RayEngine

__all__ = ["RayEngine"]
