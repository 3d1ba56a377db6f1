"""A pickle read without obeying it: what it would build, as plain data.

A pickle is a program for a small stack machine. :func:`read_pickle` runs that program with every class and function
replaced by its name, every tensor by the claim of one, and every object by a note of what it would be. Nothing is
imported, called or allocated. What comes out tells, before torch sees the file, which names it asks for, how deep it is
nested, whether each tensor lies within a storage and each storage within the file, and that nothing is called but
torch's own functions that put tensors together, with arguments as torch.save writes them.

The instructions are those of protocol 2 that torch's weights-only unpickler knows; any other is refused, as it would be
there. Source: CPython's pickletools; torch/_weights_only_unpickler.py.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from pickle import decode_long
from typing import Any

from bnfold.files.archive import Entry
from bnfold.files.pickle_values import BadPickleError, Made, Name, Pickle, Storage, TensorClaim, children
from bnfold.printable import bytes_in_words, shown

__all__ = ["BadPickleError", "Pickle", "read_pickle"]

MOST_BYTES = 64 << 20
MOST_STEPS = 2_000_000
MOST_WAITING = 100_000  # values on the stack: torch.save puts at most 1,000 items of a container there, or one tuple
MOST_MARKS = 1_000
DEEPEST = 500


def read_pickle(data: bytes, entries: dict[str, Entry], known: Callable[[str], str | None]) -> Pickle:
    """Read a pickle as plain data.

    Args:
        data: the pickle.
        entries: the archive's entries, against which storages are checked.
        known: for a full name, ``"class"`` where objects may be made from it (an allowed module class), ``"value"``
            where it may only stand as a value, and None where it is not allowed.

    Raises:
        BadPickleError: it is damaged, too large or too deep, or would do what torch.save never writes.
    """
    if len(data) > MOST_BYTES:
        raise BadPickleError(f"describes its objects in {bytes_in_words(len(data))}, more than bnfold reads")
    machine = _Machine(data, entries, known)
    try:
        machine.run()
    except (IndexError, KeyError, struct.error, UnicodeDecodeError, ValueError, TypeError):
        raise BadPickleError("is damaged: its pickle is inconsistent") from None
    _check_depth(machine.result.root)
    return machine.result


class _Machine:
    """The pickle machine over names and claims."""

    def __init__(self, data: bytes, entries: dict[str, Entry], known: Callable[[str], str | None]) -> None:
        from torch._utils import IMPORT_MAPPING, NAME_MAPPING

        from bnfold.files.pickle_calls import CALLS

        self.calls, self.names, self.modules = CALLS, NAME_MAPPING, IMPORT_MAPPING
        self.data, self.place = data, 0
        self.entries, self.known = entries, known
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.result = Pickle()

    def take(self, count: int) -> bytes:
        start = self.place
        self.place = end = start + count
        if end > len(self.data):
            raise BadPickleError("is damaged: its pickle is cut short")
        return self.data[start:end]

    def line(self) -> str:
        end = self.data.index(b"\n", self.place)
        text = self.data[self.place : end].decode()
        self.place = end + 1
        return text

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def run(self) -> None:
        steps = _STEPS
        for count in range(MOST_STEPS):
            if not count % 4096 and (len(self.stack) > MOST_WAITING or len(self.marks) > MOST_MARKS):
                raise BadPickleError(f"is nested more than {DEEPEST} levels deep, or holds a tuple that is too long")
            if self.place >= len(self.data):
                raise BadPickleError("is damaged: its pickle is cut short")
            code = self.data[self.place]
            self.place += 1
            if code == _STOP:
                self.result.root = self.stack.pop()
                return
            step = steps.get(code)
            if step is None:
                raise BadPickleError(
                    f"uses a pickle instruction that torch.save does not write ({bytes([code])!r}, perhaps of a later "
                    "pickle protocol)"
                )
            step(self)
        raise BadPickleError(f"takes more than {MOST_STEPS} steps to read, more than bnfold allows")

    # Values

    def protocol(self) -> None:
        version = self.take(1)[0]
        if version != 2:
            raise BadPickleError(f"is pickled with protocol {version}; torch.save writes protocol 2")

    def name(self) -> None:
        pair = self.line(), self.line()
        module, name = self.names.get(pair, (self.modules.get(pair[0], pair[0]), pair[1]))
        full = f"{module}.{name}"
        if self.known(full) is None and full not in self.result.asked:
            self.result.asked.append(full)
        self.stack.append(Name(full))

    def text(self) -> None:
        (length,) = struct.unpack("<I", self.take(4))
        self.stack.append(str(self.take(length), "utf-8", "surrogatepass"))

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def storage(self) -> None:
        claim = self.stack.pop()
        if not (isinstance(claim, tuple) and len(claim) == 5 and claim[0] == "storage" and isinstance(claim[1], Name)):
            raise BadPickleError("refers to something outside the file that is not a storage")
        _, kind, key, _, elements = claim
        entry = self.entries.get(f"data/{key}") if isinstance(key, str) else None
        if entry is None or not isinstance(elements, int):
            raise BadPickleError(f"asks for the storage `{shown(key)}`, which it does not hold")
        size = _element_size(kind.full)
        if size is None:
            raise BadPickleError(
                f"holds a storage of the kind `{shown(kind.full)}`, which is not a plain number format"
            )
        if elements < 0 or elements * size != entry.plain:
            raise BadPickleError(
                f"says that the storage `{shown(key)}` has {shown(elements)} elements, and holds "
                f"{bytes_in_words(entry.plain)} of it"
            )
        self.stack.append(Storage(kind.full, key, elements))

    # Containers

    def append(self) -> None:
        item = self.stack.pop()
        _require(type(self.stack[-1]) is list)
        self.stack[-1].append(item)

    def extend(self) -> None:
        items = self.since_mark()
        _require(type(self.stack[-1]) is list)
        self.stack[-1].extend(items)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def set_items(self) -> None:
        self._fill(self.since_mark())

    def _fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        _require(isinstance(target, dict) and len(items) % 2 == 0)
        for index in range(0, len(items), 2):
            if not _plain_key(items[index]):
                raise BadPickleError("holds a dict whose keys are not plain names or numbers")
            target[items[index]] = items[index + 1]

    def tuple_since_mark(self) -> None:
        items = self.since_mark()
        self.stack.append(tuple(items))

    def tuple_of(self, count: int) -> None:
        _require(len(self.stack) >= count)
        self.stack[-count:] = [tuple(self.stack[-count:])]

    # Objects

    def new(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        _require(isinstance(name, Name))
        if self.known(name.full) == "class" and arguments != ():
            raise BadPickleError(
                f"gives arguments to the constructor of `{shown(name.full)}`, which torch.save never does"
            )
        if self.known(name.full) == "value":
            raise BadPickleError(f"makes an object of `{shown(name.full)}`, which is not a module class")
        self.stack.append(Made(name.full))

    def call(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, Name) or type(arguments) is not tuple:
            raise BadPickleError("calls something that is not a torch function")
        if self.known(name.full) is None:
            self.stack.append(Made(name.full))  # the whole file is refused for asking for it
            return
        result = self.calls.get(name.full)
        if result is None:
            raise BadPickleError(f"calls `{shown(name.full)}`, which torch.save never writes")
        self.stack.append(result(*arguments))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is OrderedDict:  # a state_dict carries its version numbers this way
            if type(state) is not dict or set(state) - {"_metadata"}:
                raise BadPickleError("sets attributes on a dict")
            return
        _require(isinstance(target, Made))
        if self.known(target.name) is None:
            return
        if target.state is not None or type(state) is not dict or not all(type(key) is str for key in state):
            raise BadPickleError(f"fills in a `{shown(target.name)}` in a way that torch.save never writes")
        bad = next((key for key in state if key.startswith("__")), None)
        if bad is not None:
            raise BadPickleError(f"sets `{shown(bad)}` on a `{shown(target.name)}`")
        target.state = dict(state)


def _require(holds: bool) -> None:
    if not holds:
        raise BadPickleError("is damaged: its pickle is inconsistent")


def _plain_key(key: object) -> bool:
    """Whether a dict's key is hashed in no time; the hash of tuples inside tuples can take forever."""
    if type(key) is tuple:
        return len(key) <= 16 and all(type(part) in {str, int, float, bool, type(None)} for part in key)
    return type(key) in {str, int, float, bool, type(None)}


def _element_size(kind: str) -> int | None:
    sizes = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1}
    sizes |= {"Bool": 1, "ComplexDouble": 16, "ComplexFloat": 8}
    module, _, name = kind.rpartition(".")
    if kind == "torch.storage.UntypedStorage":
        return 1
    return sizes.get(name.removesuffix("Storage")) if module in {"torch", "torch.cuda"} else None


def _check_depth(root: object) -> None:
    """Refuse what is nested so deeply that code which follows it by recursion would fail."""
    seen: set[int] = set()
    trail = [iter((root,))]
    while trail:
        for value in trail[-1]:
            if id(value) not in seen and isinstance(value, (dict, list, tuple, Made, TensorClaim)):
                seen.add(id(value))
                trail.append(children(value))
                break
        else:
            trail.pop()
        if len(trail) > DEEPEST:
            raise BadPickleError(f"is nested more than {DEEPEST} levels deep")


def _number(form: str) -> Callable[[_Machine], None]:
    packed = struct.Struct(form)
    return lambda machine: machine.stack.append(packed.unpack(machine.take(packed.size))[0])


def _constant(make: Callable[[], object]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(make())


def _mark(machine: _Machine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


_STOP = ord(".")
_STEPS: dict[int, Callable[[_Machine], None]] = {
    ord(code): step
    for code, step in {
        "\x80": _Machine.protocol,
        "c": _Machine.name,
        "X": _Machine.text,
        "U": lambda m: m.stack.append(m.take(m.take(1)[0]).decode()),
        "\x8a": lambda m: m.stack.append(decode_long(m.take(m.take(1)[0]))),
        "J": _number("<i"),
        "K": _number("<B"),
        "M": _number("<H"),
        "G": _number(">d"),
        "N": _constant(lambda: None),
        "\x88": _constant(lambda: True),
        "\x89": _constant(lambda: False),
        ")": _constant(tuple),
        "]": _constant(list),
        "}": _constant(dict),
        "(": _mark,
        "t": _Machine.tuple_since_mark,
        "\x85": lambda m: m.tuple_of(1),
        "\x86": lambda m: m.tuple_of(2),
        "\x87": lambda m: m.tuple_of(3),
        "a": _Machine.append,
        "e": _Machine.extend,
        "s": _Machine.set_item,
        "u": _Machine.set_items,
        "q": lambda m: m.put(m.take(1)[0]),
        "r": lambda m: m.put(struct.unpack("<I", m.take(4))[0]),
        "h": lambda m: m.stack.append(m.memo[m.take(1)[0]]),
        "j": lambda m: m.stack.append(m.memo[struct.unpack("<I", m.take(4))[0]]),
        "Q": _Machine.storage,
        "\x81": _Machine.new,
        "R": _Machine.call,
        "b": _Machine.build,
    }.items()
}
