"""Serves knowledge bases over HTTP: an OpenAI-compatible endpoint whose answers name their sources."""

try:
    from lclm_rag.serving.app import create_app
except ModuleNotFoundError as error:
    if (error.name or "").startswith("lclm_rag"):
        raise
    raise ImportError(
        f"Serving needs {error.name}, which is not there: pip install 'lclm-rag[serve]'"
    ) from error
from lclm_rag.serving.bases import ServedBase, open_bases
from lclm_rag.serving.limits import Limits

__all__ = ["Limits", "ServedBase", "create_app", "open_bases"]
