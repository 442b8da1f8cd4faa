"""
A machine that follows a pickle without doing what it says.

Python's unpickler imports and calls whatever a file names. This one knows the opcodes that
describe values, and turns every object that a file asks for into an inert `Object` that
remembers the name of its class. Nothing from the file is imported, called, hashed or compared.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

from edgeconv.checkpoint.error import CheckpointError, damaged

__all__ = ["Global", "Object", "load"]

OPCODES = 2**20  # a large training checkpoint takes some 100,000; each may cost 256 bytes
NAME_CHARACTERS = 2**7  # of a module or a class
LINE_BYTES = 2**10  # with such a name

Value: TypeAlias = object


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that the file names: only its dotted name."""

    name: str


class Object:
    """
    A dictionary, or an instance of a class that the file names.

    `kind` is the class, `state` what its attributes were to become. `items` is a list of pairs,
    because a file can choose keys whose hashes collide, or take forever to compute.
    """

    __slots__ = ("items", "kind", "state")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.items: list[tuple[Value, Value]] = []
        self.state: Value = None


Build: TypeAlias = Callable[[str, tuple[Value, ...]], Value]

# Opcodes by what follows them: nothing, a number, or a length and as many bytes.
_CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False, b")": ()}
_NUMBERS = {b"J": struct.Struct("<i"), b"K": struct.Struct("<B"), b"M": struct.Struct("<H")}
_NUMBERS |= {b"G": struct.Struct(">d")}
_TEXTS = {b"\x8c": 1, b"X": 4, b"\x8d": 8}
_STRINGS = {b"U": 1, b"T": 4}  # of Python 2, which did not tell text from bytes
_BYTES = {b"C": 1, b"B": 4, b"\x8e": 8, b"\x96": 8}
_LONGS = {b"\x8a": 1, b"\x8b": 4}
_GETS = {b"h": 1, b"j": 4}
_PUTS = {b"q": 1, b"r": 4}
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}


def load(file: BinaryIO, size: int, build: Build, persistent: Callable[[Value], Value]) -> Value:
    """
    Follow a pickle of protocol 2 to 5, and leave the file at its end.

    Parameters
    ----------
    file : binary file
        It is read from its position on.
    size : int
        The number of bytes that follow, and that the pickle may take.
    build : callable
        Given a dotted name and the arguments that the file wants it called with, returns the
        value, or None for an `Object`.
    persistent : callable
        Given the description of a value outside the pickle, returns the value.
    """
    machine = _Machine(file, size, build, persistent)
    try:
        return machine.run()
    except (IndexError, KeyError):
        # The stack or the memo lacks a value.
        raise damaged("the pickle must be complete", "a broken one") from None


class _Machine:
    """A stack, a memo, and what is left of the pickle."""

    def __init__(
        self, file: BinaryIO, size: int, build: Build, persistent: Callable[[Value], Value]
    ) -> None:
        self.file = file
        self.left = size
        self.build = build
        self.persistent = persistent
        self.stack: list[Value] = []
        self.below: list[list[Value]] = []
        """The stacks below each open mark."""
        self.memo: dict[int, Value] = {}

    def run(self) -> Value:
        """Follow the pickle to its end."""
        for _ in range(OPCODES):
            opcode = self.take(1)
            if opcode == b".":
                value = self.stack.pop()
                if self.stack or self.below:
                    raise damaged("the pickle must end with its value", "more")
                return value
            self.step(opcode)
        raise CheckpointError(
            f"the pickle must have at most {OPCODES} opcodes", "more", "save only the state dict"
        )

    def step(self, opcode: bytes) -> None:
        """Follow one opcode."""
        push = self.push
        if opcode in _CONSTANTS:
            push(_CONSTANTS[opcode])
        elif opcode in _NUMBERS:
            number = _NUMBERS[opcode]
            push(*number.unpack(self.take(number.size)))
        elif opcode in _TEXTS:
            push(self.text(self.take(self.number(_TEXTS[opcode]))))
        elif opcode in _STRINGS:
            raw = self.take(self.number(_STRINGS[opcode]))
            push(raw.decode(errors="surrogateescape"))
        elif opcode in _BYTES:
            push(self.take(self.number(_BYTES[opcode])))
        elif opcode in _LONGS:
            digits = self.take(self.number(_LONGS[opcode]))
            push(_short(int.from_bytes(digits, "little", signed=True)))
        elif opcode in _GETS:
            push(self.memo[self.number(_GETS[opcode])])
        elif opcode in _PUTS:
            self.memo[self.number(_PUTS[opcode])] = self.stack[-1]
        elif opcode in _TUPLES:
            push(tuple(self.popped(_TUPLES[opcode])))
        elif opcode in _OPERATIONS:
            _OPERATIONS[opcode](self)
        else:
            raise CheckpointError(
                "the pickle must use the opcodes of protocols 2 to 5 that describe values",
                f"opcode {opcode.hex()}",
                "save it again with `torch.save`",
            )

    def push(self, value: Value) -> None:
        """Put a value on the stack of the innermost group."""
        self.stack.append(value)

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        # Checked first: `read` would allocate whatever the file claims.
        taken = self.file.read(count) if count <= self.left else b""
        if len(taken) != count:
            raise damaged("the pickle must be complete", "its end")
        self.left -= count
        return taken

    def number(self, size: int) -> int:
        """Return the next number, of `size` bytes."""
        return int.from_bytes(self.take(size), "little")

    def text(self, raw: bytes) -> str:
        """Decode a string; Python pickles file names that are not UTF-8 as lone surrogates."""
        try:
            return raw.decode(errors="surrogatepass")
        except UnicodeDecodeError:
            raise damaged("text in the pickle must be UTF-8", raw[:64].hex(" ")) from None

    def line(self) -> str:
        """Return the next line."""
        raw = self.file.readline(min(self.left, LINE_BYTES))
        if not raw.endswith(b"\n"):
            raise damaged("the pickle must have short lines", "a long one, or its end")
        self.left -= len(raw)
        return self.text(raw[:-1])

    def protocol(self) -> None:
        """Check the protocol's number."""
        if not 2 <= self.number(1) <= 5:
            raise damaged("the pickle must be of protocol 2 to 5", "another")

    def mark(self) -> None:
        """Open a group of values."""
        self.below.append(self.stack)
        self.stack = []

    def group(self) -> list[Value]:
        """Close the group, and return its values."""
        group = self.stack
        self.stack = self.below.pop()
        return group

    def named(self, module: Value, name: Value) -> None:
        """Push a class or function."""
        for part in (module, name):
            if not isinstance(part, str) or len(part) > NAME_CHARACTERS:
                raise damaged("the pickle must name classes by short texts", type(part).__name__)
        self.stack.append(Global(f"{module}.{name}"))

    def call(self, argument_count: int) -> None:
        """Replace a class or function and its arguments by what `build` makes of them."""
        arguments = self.stack[-argument_count]
        del self.stack[-argument_count:]
        function = self.stack.pop()
        if not isinstance(function, (Global, Object)) or not isinstance(arguments, tuple):
            raise damaged("the pickle must call a class or function", type(function).__name__)
        name = function.name if isinstance(function, Global) else function.kind
        value = self.build(name, arguments)
        self.stack.append(Object(name) if value is None else value)

    def extend(self, values: list[Value]) -> None:
        """Append values to the list, or the object that takes them like one, below them."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Object):
            target.items.extend(enumerate(values, len(target.items)))
        else:
            raise damaged("the pickle must append to a list", type(target).__name__)

    def update(self, values: list[Value]) -> None:
        """Put keys and values, in turn, into the object below them."""
        target = self.stack[-1]
        if not isinstance(target, Object) or len(values) % 2:
            raise damaged("the pickle must put pairs into a dict", type(target).__name__)
        target.items.extend(zip(values[::2], values[1::2], strict=True))

    def set_state(self) -> None:
        """Remember an object's attributes. A tensor's would be another storage and shape."""
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, Object):
            raise damaged("the pickle must set the attributes of objects", type(target).__name__)
        target.state = state

    def integer(self) -> None:
        """Push a number of Python 2 that 32 bits do not hold, or a Boolean."""
        line = self.line()
        if not line.removeprefix("-").isascii() or not line.removeprefix("-").isdecimal():
            raise damaged("the pickle must have digits in its numbers", "others")
        booleans = {"00": False, "01": True}
        self.stack.append(booleans[line] if line in booleans else _short(int(line)))

    def instance(self) -> None:
        """Push an instance of an old-style class of Python 2."""
        group = self.group()
        self.stack.extend((group[0], tuple(group[1:])))
        self.call(1)

    def popped(self, count: int) -> list[Value]:
        """Take values from the stack, the last one last."""
        if len(self.stack) < count:
            raise IndexError
        values = self.stack[-count:]
        del self.stack[-count:]
        return values


def _short(number: int) -> int | None:
    """Return a number, or None for one that is never a size, and slow to print."""
    return number if number.bit_length() < 2**11 else None


# The remaining opcodes, by the names that Python's `pickletools` documents them under.
_OPERATIONS: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": _Machine.protocol,  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME: a hint for readers of streams
    b"(": _Machine.mark,  # MARK
    b"0": lambda m: m.stack.pop(),  # POP
    b"1": _Machine.group,  # POP_MARK
    b"]": lambda m: m.push([]),  # EMPTY_LIST
    b"}": lambda m: m.push(Object("dict")),  # EMPTY_DICT
    b"\x8f": lambda m: m.push(Object("set")),  # EMPTY_SET
    b"t": lambda m: m.push(tuple(m.group())),  # TUPLE
    b"a": lambda m: m.extend(m.popped(1)),  # APPEND
    b"e": lambda m: m.extend(m.group()),  # APPENDS
    b"\x90": lambda m: m.extend(m.group()),  # ADDITEMS
    b"s": lambda m: m.update(m.popped(2)),  # SETITEM
    b"u": lambda m: m.update(m.group()),  # SETITEMS
    b"\x91": lambda m: m.push(m.group()),  # FROZENSET
    b"\x94": lambda m: m.memo.__setitem__(len(m.memo), m.stack[-1]),  # MEMOIZE
    b"c": lambda m: m.named(m.line(), m.line()),  # GLOBAL
    b"\x93": lambda m: m.named(*m.popped(2)),  # STACK_GLOBAL
    b"I": _Machine.integer,  # INT
    b"o": _Machine.instance,  # OBJ
    b"R": lambda m: m.call(1),  # REDUCE
    b"\x81": lambda m: m.call(1),  # NEWOBJ
    b"\x92": lambda m: m.call(2),  # NEWOBJ_EX
    b"b": _Machine.set_state,  # BUILD
    b"Q": lambda m: m.push(m.persistent(m.stack.pop())),  # BINPERSID
}
