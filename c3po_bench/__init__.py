"""c3po_bench: expert rewiring and verbal feedback for language models, compared fairly."""

__version__ = "0.1.0"
