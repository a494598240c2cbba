"""Other people's frameworks and file formats, brought to this package's own types."""
