"""Pickles that call what no model calls, claim what the file does not hold, or do not add up."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from tests.files.cases import REFUSED, Case, content
from tests.files.forge import (
    BUILD,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_TUPLE,
    FALSE,
    MARK,
    NEW,
    NONE,
    REDUCE,
    TRUE,
    call,
    dict_of,
    integer,
    integers,
    module,
    name,
    ordered_dict,
    program,
    saved,
    storage,
    tensor,
    text,
    torch_zip,
    tuple_of,
)

CELLS = {"0": bytes(16)}  # four float32


def attack(title: str, make: Callable[[str], bytes], *says: str) -> Case:
    """Return the case of a pickle that would make the marker file if it were obeyed."""

    def write(folder: Path, marker: Path) -> Path:
        path = folder / "model.pt"
        path.write_bytes(torch_zip(program(make(str(marker)))))
        return path

    return Case(title, write, REFUSED, says)


def pickled(title: str, body: bytes, *says: str) -> Case:
    return content(title, torch_zip(program(body), CELLS), *says)


def claims(title: str, body: bytes, *says: str) -> Case:
    """Return the case of a state_dict with one tensor that claims too much."""
    return pickled(title, dict_of(weight=body), *says)


def _touch(marker: str) -> str:
    return f"open({marker!r}, 'w').close()"


def _nested(levels: int) -> bytes:
    return EMPTY_LIST * levels + b"a" * (levels - 1)


def _hash_bomb() -> bytes:
    doubled = tuple_of(text("x"))
    for slot in range(40):
        doubled += b"q" + bytes([slot]) + b"h" + bytes([slot]) + b"\x86"
    return EMPTY_DICT + doubled + NONE + b"s"


class Sub(torch.Tensor):
    """A subclass, as a library might define."""


def _sparse_rows() -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "in beta state"
        return saved({"w": torch.eye(3).to_sparse_csr()})


ATTACKS = (
    attack("os.system", lambda m: call("os", "system", text(f"touch {m}")), "`os.system`", "--trust"),
    attack("posix.system", lambda m: call("posix", "system", text(f"touch {m}")), "`posix.system`"),
    attack("builtins.eval", lambda m: call("builtins", "eval", text(_touch(m))), "`builtins.eval`"),
    attack("builtins.exec", lambda m: call("builtins", "exec", text(_touch(m))), "`builtins.exec`"),
    attack("__builtin__.eval", lambda m: call("__builtin__", "eval", text(_touch(m))), "`builtins.eval`"),
    attack("subprocess.Popen", lambda m: call("subprocess", "Popen", text(f"touch {m}")), "`subprocess.Popen`"),
    attack("pathlib.Path.touch", lambda m: call("pathlib", "Path", text(m)), "`pathlib.Path`"),
    attack("builtins.open", lambda m: call("io", "open", text(m), text("w")), "`io.open`"),
    attack("runpy.run_path", lambda m: call("runpy", "run_path", text(m)), "`runpy.run_path`"),
    attack("torch.load inside", lambda m: call("torch.serialization", "load", text(m)), "`torch.serialization.load`"),
    attack("torch.hub.load", lambda m: call("torch.hub", "load", text(m), text("x")), "`torch.hub.load`"),
    attack("torch.save to a path", lambda m: call("torch", "save", NONE, text(m)), "`torch.save`"),
    attack("timeit.timeit", lambda m: call("timeit", "timeit", text(_touch(m))), "`timeit.timeit`"),
    attack(
        "a GraphModule with source code",
        lambda m: call("torch.fx.graph_module", "reduce_graph_module", dict_of(_code=text(_touch(m))), text("")),
        "GraphModule",
        "source code",
    ),
    attack(
        "_rebuild_from_type_v2 that calls",
        lambda m: call(
            "torch._tensor",
            "_rebuild_from_type_v2",
            name("torch.nn.modules.linear", "Linear"),
            name("torch", "Tensor"),
            integers(3, 3),
            NONE,
        ),
        "rebuilds a tensor",
    ),
    attack(
        "a module that is called", lambda m: module("activation.ReLU") + integers(1) + REDUCE, "not a torch function"
    ),
    attack("many names at once", lambda m: tuple_of(*(name("os", f"f{n}") for n in range(50))), "47 more"),
    attack(
        "a name with escapes",
        lambda m: call("os\x1b[31m", "system", text(m)),
        r"\x1b[31m",
    ),
    attack("a name of a megabyte", lambda m: call("os", "s" * 1_000_000, text(m)), "`os.sss"),
)

CONSTRUCTORS = (
    pickled(
        "Linear(10^6, 10^6) by NEWOBJ",
        name("torch.nn.modules.linear", "Linear") + integers(10**6, 10**6) + NEW,
        "arguments",
    ),
    pickled(
        "Linear(10^6, 10^6) by REDUCE",
        call("torch.nn.modules.linear", "Linear", integer(10**6), integer(10**6)),
        "calls",
    ),
    pickled(
        "torch.Tensor(10^6, 10^6)", call("torch", "Tensor", integer(10**6), integer(10**6)), "calls `torch.Tensor`"
    ),
    pickled("torch.FloatTensor(10^12)", call("torch", "FloatTensor", integer(10**12)), "calls `torch.FloatTensor`"),
    pickled("bytearray(10^12)", call("builtins", "bytearray", integer(10**12)), "calls `builtins.bytearray`"),
    pickled("a codec by name", call("_codecs", "encode", text("x"), text("idna")), "codec"),
    pickled("an object of a dtype class", name("torch", "Size") + EMPTY_TUPLE + NEW, "not a module class"),
    pickled("a hash that takes forever", _hash_bomb(), "not plain names"),
    pickled("a set of tuples", call("builtins", "set", EMPTY_LIST + MARK + integers(1) + b"e"), "makes a set"),
    pickled(
        "an OrderedDict with attributes", ordered_dict() + dict_of(items=name("torch", "Size")) + BUILD, "on a dict"
    ),
    pickled("a class set", module("activation.ReLU", __class__=name("torch", "Size")), "`__class__`"),
    pickled("__setstate__ set", module("activation.ReLU", __setstate__=name("torch", "Size")), "`__setstate__`"),
    pickled("state given twice", module("activation.ReLU") + dict_of(a=NONE) + BUILD, "fills in"),
    pickled(
        "state that is no dict",
        name("torch.nn.modules.activation", "ReLU") + EMPTY_TUPLE + NEW + integers(1) + BUILD,
        "fills in",
    ),
)

CLAIMS = (
    claims("a stride-0 tensor of 10^6 x 10^6", tensor(storage("0", 4), (10**6, 10**6), (0, 0)), "claims more"),
    claims("a tensor past its storage", tensor(storage("0", 4), (2, 3), (3, 1)), "claims more"),
    claims("strides past the storage", tensor(storage("0", 4), (2, 2), (4, 1)), "claims more"),
    claims("an offset past the storage", tensor(storage("0", 4), (2,), (1,), 3), "claims more"),
    claims("overlapping strides", tensor(storage("0", 4), (3, 3), (0, 1)), "claims more"),
    claims("a shape that overflows", tensor(storage("0", 4), (2**40, 2**40), (1, 1)), "claims more"),
    claims("a negative shape", tensor(storage("0", 4), (-1, 4), (1, 1)), "invalid shape"),
    claims("a negative stride", tensor(storage("0", 4), (4,), (-1,)), "invalid shape"),
    claims("a negative offset", tensor(storage("0", 4), (4,), (1,), -4), "invalid shape"),
    claims("shape and strides of two lengths", tensor(storage("0", 4), (4,), (1, 1)), "invalid shape"),
    claims("100 dimensions", tensor(storage("0", 4), (1,) * 100, (1,) * 100), "invalid shape"),
    claims("a storage of 10^12 numbers", tensor(storage("0", 10**12), (10**12,), (1,)), "holds 16 bytes"),
    claims("a storage smaller than its entry", tensor(storage("0", 2), (2,), (1,)), "holds 16 bytes"),
    claims("a storage of -4 numbers", tensor(storage("0", -4), (4,), (1,)), "holds 16 bytes"),
    claims("a storage that is not there", tensor(storage("7", 4), (4,), (1,)), "does not hold"),
    claims("a storage by a path", tensor(storage("../data.pkl", 4), (4,), (1,)), "does not hold"),
    claims("a quantized storage", tensor(storage("0", 16, "QInt8Storage"), (4,), (1,)), "not a plain number format"),
    claims("a hook on a tensor", tensor(storage("0", 4), (4,), (1,), hooks=dict_of(a=name("torch", "Size"))), "hook"),
    claims("a tensor without a storage", tensor(NONE, (4,), (1,)), "without a storage"),
    claims(
        "a tensor's data replaced",
        call(
            "torch._utils",
            "_rebuild_parameter_with_state",
            tensor(storage("0", 4), (4,), (1,)),
            FALSE,
            ordered_dict(),
            dict_of(data=NONE),
        ),
        "attribute `data`",
    ),
)

TENSORS = (
    content("a sparse tensor", lambda: saved({"w": torch.eye(3).to_sparse()}), "sparse"),
    content("a sparse tensor in rows", _sparse_rows, "sparse"),
    content("a meta tensor", lambda: saved({"w": torch.empty(3, device="meta")}), "meta"),
    content("a conjugate tensor", lambda: saved({"w": torch.ones(3, dtype=torch.complex64).conj()}), "conjugate"),
    content("a tensor subclass", lambda: saved({"w": torch.ones(3).as_subclass(Sub)}), "Sub"),
    content("a tensor in float8", lambda: saved({"w": torch.ones(3).to(torch.float8_e5m2)}), "float8"),
)

BROKEN = (
    content("no pickle", torch_zip(b""), "cut short"),
    content("a pickle without an end", torch_zip(b"\x80\x02}"), "cut short"),
    content("a pickle of zeros", torch_zip(bytes(100)), "does not write"),
    content("protocol 4", torch_zip(b"\x80\x04N."), "protocol 4"),
    content("a later instruction", torch_zip(b"\x80\x02\x8c\x01a."), "does not write"),
    content("the stack runs empty", torch_zip(b"\x80\x02s."), "is inconsistent"),
    content("a memo that is not there", torch_zip(b"\x80\x02h\x07."), "is inconsistent"),
    content("a text longer than the file", torch_zip(b"\x80\x02X\xff\xff\xff\xff."), "cut short"),
    content("a name without its end", torch_zip(b"\x80\x02ctorch"), "is inconsistent"),
    content("a mark that is not there", torch_zip(b"\x80\x02t."), "is inconsistent"),
    content("1,000,000 lists, one in the other", torch_zip(program(_nested(1_000_000))), "levels deep"),
    content("a list that holds itself", torch_zip(program(EMPTY_LIST, b"q\0h\0a")), "not a model"),
    pickled("an item put into a list", EMPTY_LIST + text("a") + NONE + b"s", "is inconsistent"),
    pickled("a key that is a list", EMPTY_DICT + EMPTY_LIST + NONE + b"s", "not plain names"),
    pickled("a number", integer(1), "not a model"),
    pickled("None", NONE, "not a model"),
    pickled("a storage", storage("0", 4), "not a model"),
    pickled("true and false", tuple_of(TRUE, FALSE), "not a model"),
)

CASES = ATTACKS + CONSTRUCTORS + CLAIMS + TENSORS + BROKEN
