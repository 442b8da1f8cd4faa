"""Pickles that run code where the reader lets them: each makes a directory or a file."""

import io
import marshal
import os
import pickle
import shlex

from torch_files import named, saved, storage, tensor, view

from attacks.catalogue import W, loads, refused, register
from attacks.pickles import BODY, beside, call, file, name, stack_name, text

MKDIR = named("os", "mkdir")
PLAIN = ("pickle",)
BOTH = ("pickle", "prefixes")


class Mkdir:
    """Pickled by Python itself."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def shell(m):
    return "mkdir " + shlex.quote(m)


def python(m):
    return f"__import__('os').mkdir({m!r})"


def mapped(function, argument):
    """Call what a call returned."""
    return call("builtins.list", call("builtins.map", function, [argument]))


def from_module(m):
    return call("builtins.getattr", call("importlib.import_module", "os"), "mkdir")


def from_bytes(m):
    code = marshal.dumps(compile(python(m), "", "eval"))
    return call("builtins.eval", call("marshal.loads", code))


def torch_saved(m):
    """Write a file of PyTorch before 1.6: five pickles, the first of which is enough."""
    target = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {}, Mkdir(m), []):
        pickle.dump(value, target, 2)
    return target.getvalue()


# What REDUCE calls. The second list passes an allowlist of modules by prefix, and the third needs
# PyTorch: a test in tests/oracle shows that it is live.
CALLED = {
    "os.mkdir": lambda m: call("os.mkdir", m),
    "os.system": lambda m: call("os.system", shell(m)),
    "posix.system": lambda m: call("posix.system", shell(m)),
    "subprocess": lambda m: call("subprocess.call", ["mkdir", m]),
    "eval": lambda m: call("builtins.eval", python(m)),
    "exec": lambda m: call("builtins.exec", python(m)),
    "open": lambda m: call("builtins.open", m, "w"),
    "a chain of getattr": lambda m: mapped(from_module(m), m),
    "operator.methodcaller": lambda m: mapped(
        call("operator.methodcaller", "mkdir", m), call("importlib.import_module", "os")
    ),
    "functools.partial": lambda m: mapped(call("functools.partial", MKDIR), m),
    "functools.reduce": lambda m: call("functools.reduce", MKDIR, [m, 0o777]),
    "marshalled code": from_bytes,
    "timeit": lambda m: call("timeit.timeit", python(m)),
    "a log file": lambda m: call("logging.FileHandler", m),
    "a pickle in the pickle": lambda m: call("pickle.loads", pickle.dumps(Mkdir(m))),
}
ALLOWED = {
    "numpy.testing.runstring": lambda m: call("numpy.testing.runstring", python(m), {}),
    "numpy.f2py's eval": lambda m: call("numpy.f2py.crackfortran.myeval", python(m)),
    "numpy.savetxt": lambda m: call("numpy.savetxt", m, [1.0]),
    "numpy.memmap": lambda m: call("numpy.memmap", m, "u1", "w+", 0, 1),
}
TORCH = {
    "torch.utils.collect_env": lambda m: call("torch.utils.collect_env.run", shell(m)),
    "torch.jit's exec": lambda m: call(
        "torch.jit.unsupported_tensor_ops.execWrapper", python(m), {}, {}
    ),
    "torch.storage": lambda m: call("torch.storage._load_from_bytes", torch_saved(m)),
}
for calls, live in ((CALLED, PLAIN), (ALLOWED, BOTH), (TORCH, ("torch",))):
    for called, payload in calls.items():
        register(
            {"w": W},
            f"REDUCE of {called}",
            lambda m, payload=payload: saved({"w": tensor(W), "x": payload(m)}, protocol=4),
            live=live,
        )


@loads(live=PLAIN)
def by_the_name_of_eval_in_Python_2(m):
    return beside(name("__builtin__.eval") + text(python(m)) + b"\x85R")


@loads(live=PLAIN)
def before_the_weights(m):
    return saved({"x": call("os.mkdir", m), "w": tensor(W)})


@loads(live=PLAIN)
def as_a_key(m):
    return saved({"w": tensor(W), "x": {call("os.mkdir", m): 1}})


@loads(live=PLAIN)
def as_the_hooks_of_a_tensor(m):
    arguments = (storage(W), 0, (3,), (1,), False, call("os.mkdir", m))
    return saved({"w": call("torch._utils._rebuild_tensor_v2", *arguments)})


@refused(
    "a tensor must have an offset, a size, strides and one set of flags",
    live=PLAIN,
)
def as_the_offset_of_a_tensor(m):
    return saved({"w": view(storage(W), call("os.mkdir", m), (3,), (1,))})


@refused("must hold a Boolean, integer or float tensor, found none", live=PLAIN)
def instead_of_the_weights(m):
    return saved(call("os.mkdir", m))


@refused("the pickle must be complete, found its end", live=PLAIN)
def before_a_pickle_breaks_off(m):
    return file(b"}" + name("os.mkdir") + text(m) + b"\x85RX\xff")


@loads(live=PLAIN)
def thrown_away_by_POP(m):
    return beside(name("os.mkdir") + text(m) + b"\x85R0N")


@refused("the pickle must describe storages by type, key and size", live=PLAIN)
def in_a_persistent_id(m):
    payload = name("os.mkdir") + text(m) + b"\x85R"
    return beside(b"(" + text("storage") + payload + text("0") + text("cpu") + b"K\x03tQ")


@refused("opcodes of protocols 2 to 5 that describe values, found opcode 69", live=PLAIN)
def by_INST(m):
    return beside(b"(" + text(m) + b"ios\nmkdir\n")


@loads(live=PLAIN)
def by_OBJ(m):
    return beside(b"(" + name("os.mkdir") + text(m) + b"o")


@refused("opcodes of protocols 2 to 5 that describe values, found opcode 82", live=PLAIN)
def by_EXT(m):
    registered = name("copyreg.add_extension") + text("os") + text("mkdir") + b"K\x01\x87R0"
    return beside(registered + b"\x82\x01" + text(m) + b"\x85R")


@loads(live=BOTH)
def by_NEWOBJ(m):
    arguments = b"(" + text(m) + text("u1") + text("w+") + b"K\x00K\x01t"
    return beside(name("numpy.memmap") + arguments + b"\x81")


@loads(live=BOTH)
def by_NEWOBJ_EX(m):
    options = b"}(" + text("filename") + text(m) + text("mode") + text("w+")
    return beside(name("numpy.memmap") + b")" + options + text("shape") + b"K\x01u\x92")


def namespace(attribute):
    """Return an object with `os.mkdir` as an attribute that the unpickler calls."""
    state = b"}" + text(attribute) + name("os.mkdir") + b"s"
    return name("argparse.Namespace") + b")\x81" + state + b"b"


@loads(live=PLAIN)
def by_BUILD_of_a_setstate(m):
    return beside(namespace("__setstate__") + text(m) + b"b")


@loads(live=PLAIN)
def by_APPEND(m):
    return beside(namespace("append") + text(m) + b"a")


@loads(live=PLAIN)
def by_ADDITEMS(m):
    return beside(namespace("add") + b"(" + text(m) + b"\x90")


@refused("the pickle must put pairs into a dict, found Global")
def by_SETITEM_of_the_environment():
    return beside(name("os.environ") + text("PATH") + text("/tmp") + b"s")


@loads(live=BOTH)
def by_a_dotted_name_in_NumPy(m):
    function = stack_name("numpy.testing._private.utils", "os.mkdir")
    return beside(function + text(m) + b"\x85R", b"\x80\x04")


@loads(live=BOTH)
def by_a_dotted_name_in_argparse(m):
    return beside(stack_name("argparse", "_os.mkdir") + text(m) + b"\x85R", b"\x80\x04")


@refused("the pickle must call a class or function, found Tensor")
def a_tensor_as_a_function():
    return beside(BODY + b")R")
