"""Connectors from other frameworks and file formats to this package's own types."""
