"""ONNX files for ONNX Runtime: traced, named, rewritten for a precision, and run.

`exporter` is the line, `runtime` what a measuring process imports; nothing that is imported here imports torch or onnx.
"""

from exporters.onnx.exporter import OnnxExporter

__all__ = ["OnnxExporter"]
