"""ExecuTorch programs for devices, delegated to XNNPACK, and run by its Python bindings."""

from exporters.executorch.exporter import ExecutorchExporter

__all__ = ["ExecutorchExporter"]
