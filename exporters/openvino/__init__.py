"""OpenVINO IR: converted from the traced graph, rounded by NNCF where asked, and run."""

from exporters.openvino.exporter import OpenvinoExporter

__all__ = ["OpenvinoExporter"]
