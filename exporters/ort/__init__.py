"""ONNX Runtime's own file format: the ONNX export's graph, optimized ahead of time for small builds."""

from exporters.ort.exporter import OrtExporter

__all__ = ["OrtExporter"]
