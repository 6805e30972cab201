"""Files for other runtimes."""

from elm_nni.export.onnx import OnnxReport, export_onnx, measure_onnx

__all__ = ["OnnxReport", "export_onnx", "measure_onnx"]
