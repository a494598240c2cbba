"""The command line, `lclm-rag`. Only the commands that need models and engines import them."""

from lclm_rag.cli.main import cli, main

__all__ = ["cli", "main"]
