"""A Jupyter-first workbench for distributed PyTorch."""

__version__ = "0.1.0"
