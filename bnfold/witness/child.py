"""The process in which a witness runs: ``python -m bnfold.witness.child WITNESS MODEL.onnx FOLDER``.

It says on stdout that it is ready, then answers each line on stdin, the names of the inputs, with a line: arrays lie in
``FOLDER/inputs.npz`` and ``FOLDER/outputs.npz``, numbered. What the runtime itself prints goes nowhere.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["main"]


def main(value: str, model: str, folder: str) -> None:
    """Load the witness, then answer until stdin ends.

    Args:
        value: where the witness is found: ``package.module:function``.
        model: path of the ONNX file.
        folder: where arrays are exchanged.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a runtime that prints would break the protocol

    def say(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        import numpy as np

        run = metadata.EntryPoint("witness", value, "bnfold.witnesses").load()(model)
        say(ready=True)
        for line in sys.stdin:
            names = json.loads(line)
            with np.load(Path(folder, "inputs.npz")) as given:
                inputs = {name: given[str(place)] for place, name in enumerate(names)}
            found = [np.asarray(output) for output in run(inputs)]
            # a plain dict of arrays: names of a model's outputs may be anything
            np.savez(Path(folder, "outputs.npz"), **{str(n): output for n, output in enumerate(found)})  # type: ignore[arg-type]
            say(outputs=len(found))
    except BaseException as error:  # whatever it is, the other process says it
        say(error=" ".join(str(error).split())[:300] or type(error).__name__, missing=getattr(error, "name", None))


if __name__ == "__main__":
    main(*sys.argv[1:4])
