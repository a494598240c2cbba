"""Run the compressor over a corpus on a Ray cluster.

The driver (`engine`) hands a job to workers (`workers`). Readers make rows of passages (`work_rows`), and
encoders write fragments of them and report to the driver (`reports`). The driver commits once, when it has
all reports. A worker that dies leaves a note of the document that it was working on (`attempts`).
"""

from lclm_rag.ingestion.ray.engine import RayEngine

__all__ = ["RayEngine"]
