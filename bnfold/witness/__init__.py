"""Other runtimes as witnesses: an ONNX model runs under OpenVINO, or whatever else is registered, in a process apart.

A witness is a function that takes the path of an ONNX file and returns a function from input arrays to output arrays::

    def load(path: str, *, threads: int | None = None) -> Run: ...

    Run = Callable[[dict[str, numpy.ndarray]], Sequence[numpy.ndarray]]

The inputs come by their names in the file; the outputs go in the file's order. Packages register one as an entry point
of the group ``bnfold.witnesses``. Whatever a runtime does, crash or hang, it does to its own process:
:class:`bnfold.witness.session.Session` gives outputs or raises an error of one sentence.

Importing this package imports neither torch nor any runtime.
"""
