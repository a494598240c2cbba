"""The command line, `lclm-rag`. Models and engines are imported by the commands that need them."""

from lclm_rag.cli.main import cli, main

__all__ = ["cli", "main"]
