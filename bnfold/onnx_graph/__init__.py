"""ONNX models as a second front end: the same operations, rules and decisions as for torch, on an ``onnx_ir`` graph."""
