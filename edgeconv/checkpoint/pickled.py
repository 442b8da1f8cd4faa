"""
A machine that follows a pickle without doing what it says.

Python's unpickler imports and calls what a file names; `pickletools` only parses it. Here an object
that a file asks for becomes an inert `Object`: nothing of it is imported, called or hashed.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from edgeconv.checkpoint.error import CheckpointError, damaged, require

OPCODES = 2**20  # a large training checkpoint takes some 100,000; each may cost 256 bytes
NAME_CHARACTERS = 2**8  # of a class and its module

# Opcodes whose argument is a value, and which take so many values, or all since the last mark.
PUSHED = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINBYTES", "BINBYTES8"}
PUSHED |= {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BYTEARRAY8"}
TAKEN = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "BUILD": 1, "POP": 1}
TAKEN |= {"STACK_GLOBAL": 2, "REDUCE": 2, "NEWOBJ": 2, "NEWOBJ_EX": 3, "BINPERSID": 1}
GROUPED = {"TUPLE", "APPENDS", "SETITEMS", "ADDITEMS", "FROZENSET", "POP_MARK"}
CHANGING = {"APPEND", "APPENDS", "ADDITEMS", "SETITEM", "SETITEMS", "BUILD"}


class Global(NamedTuple):
    """A class or function that the file names: only its dotted name."""

    name: str


@dataclass(slots=True, eq=False)
class Object:
    """A list, a dictionary or an instance of a class; `state` was to become its attributes."""

    kind: str
    items: list[tuple[Any, Any]] = field(default_factory=list)  # hashes of keys could collide
    state: Any = None


# What opcodes push, made of the values that they take.
MADE: dict[str, Callable[[list[Any]], Any]]
MADE = {"NONE": lambda _: None, "NEWTRUE": lambda _: True, "NEWFALSE": lambda _: False}
MADE |= dict.fromkeys(("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "TUPLE", "FROZENSET"), tuple)
MADE |= dict.fromkeys(("EMPTY_DICT", "EMPTY_SET", "EMPTY_LIST"), lambda _: Object("dict"))


class Machine:
    """A stack, those below each open mark, and the memo; `build` and `persistent` make tensors."""

    def __init__(self, build: Callable[[str, Any], Any], persistent: Callable[[Any], Any]) -> None:
        self.build, self.persistent = build, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def load(self, pickle: bytes | bytearray) -> Any:
        """Follow a pickle of protocol 2 to 5, and return its value."""
        try:
            for opcode, argument, position in islice(pickletools.genops(pickle), OPCODES):
                if opcode.name == "STOP":
                    ends = (len(self.stack), self.below, position) == (1, [], len(pickle) - 1)
                    require(ends, "the pickle must end with its value", "more")
                    return self.stack[0]
                self.follow(opcode.name, argument)
        except (ValueError, IndexError, KeyError) as error:  # the stack or the memo lacks a value
            complaint = damaged("the pickle must be complete", type(error).__name__)
            raise (error if isinstance(error, CheckpointError) else complaint) from None
        expected = f"the pickle must have at most {OPCODES} opcodes"
        raise CheckpointError(expected, "more", "save only the state dict")

    def follow(self, name: str, argument: Any) -> None:
        """Follow one opcode."""
        if name in GROUPED:
            values, self.stack = self.stack, self.below.pop()
        else:
            values = [self.stack.pop() for _ in range(TAKEN.get(name, 0))][::-1]
        push = self.stack.append
        top: Any = self.stack[-1] if self.stack else None
        is_right = name not in CHANGING or type(top) is Object
        require(is_right, "the pickle must change a list or an object")
        match name:
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                push(self.memo[argument])
            case _ if name in PUSHED:
                push(argument)
            case _ if name in MADE:
                push(MADE[name](values))
            case "MARK":
                self.below.append(self.stack)
                self.stack = []
            case "APPEND" | "APPENDS" | "ADDITEMS":
                top.items.extend(enumerate(values, len(top.items)))
            case "SETITEM" | "SETITEMS":
                top.items.extend(zip(values[::2], values[1::2], strict=True))
            case "BUILD":  # of objects only: a tensor's state would be another storage and shape
                top.state = values[0]
            case "GLOBAL" | "STACK_GLOBAL":
                parts = values or argument.split(" ")
                is_short = {*map(type, parts)} == {str} and sum(map(len, parts)) <= NAME_CHARACTERS
                require(is_short, "the pickle must name classes by short texts")
                push(Global(".".join(parts)))
            case "REDUCE" | "NEWOBJ" | "NEWOBJ_EX":
                function, arguments, *_ = values
                is_call = type(function) in (Global, Object) and type(arguments) is tuple
                require(is_call, "the pickle must call a class or function")
                kind = function.name if type(function) is Global else function.kind
                value = self.build(kind, arguments)
                push(Object(kind) if value is None else value)
            case "BINPERSID":
                push(self.persistent(values[0]))
            case _ if name not in ("PROTO", "FRAME", "POP", "POP_MARK"):
                expected = "the pickle must use opcodes of protocols 2 to 5 that describe values"
                raise CheckpointError(expected, name, "save it again with `torch.save`")
