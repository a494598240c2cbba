"""Serves knowledge bases over HTTP: an OpenAI-compatible endpoint whose answers name their sources."""

from lclm_rag.serving.app import create_app
from lclm_rag.serving.bases import ServedBase, open_bases
from lclm_rag.serving.limits import Limits

__all__ = ["Limits", "ServedBase", "create_app", "open_bases"]
