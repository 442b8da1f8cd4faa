"""Pickles of odd, endless and enormous structures."""

import struct

from torch_files import saved, tensor, zipped

from attacks.catalogue import W, loads, refused
from attacks.pickles import BODY, ONE, beside, file, name, stack_name, text

ENDLESS = "containers must nest at most 64 deep and hold at most"
BROKEN = "the pickle must be complete, found a broken one"
LONG = b"\x80\x04"
STORAGE = b"(" + text("storage") + name("torch.FloatStorage") + text("0") + text("cpu") + b"K\x03tQ"
"""What pushes the storage of the tensor ``w``."""


def doubled(times, start=b"]", make=b"h\xf0h\xf0\x86"):
    """Return a value within two of itself within two of these, so many times: billion laughs."""
    return start + b"q\xf0" + (b"0" + make + b"q\xf0") * times


def deflated(pickle):
    return zipped({**ONE, "archive/data.pkl": b"\x80\x02" + pickle + b"."}, deflated=True)


@loads()
def a_list_in_itself():
    return beside(b"]q\xf0h\xf0a")


@loads()
def a_dictionary_in_itself():
    return beside(b"}q\xf0K\x01h\xf0s")


@loads()
def an_object_that_is_its_own_state():
    return beside(name("a.B") + b")\x81q\xf0h\xf0b")


@loads()
def lists_nested_half_a_million_deep():
    return beside(b"]" * 500_000 + b"a" * 499_999)


@loads()
def tuples_nested_a_million_deep():
    return beside(b")" + b"\x85" * 10**6)


@loads()
def dictionaries_nested_a_quarter_million_deep():
    return beside(b"}" + b"K\x01}" * 250_000 + b"s" * 250_000)


@refused(ENDLESS)
def a_tensor_half_a_million_lists_deep():
    return beside(b"]" * 500_000 + BODY + b"a" * 500_000)


@loads()
def states_nested_a_quarter_million_deep():
    return beside(name("a.B") + b"q\xf0)\x81" + b"h\xf0)\x81" * 250_000 + b"b" * 250_000)


@loads()
def marks_opened_and_closed_a_quarter_million_deep():
    return beside(b"(" * 250_000 + b"t" * 250_000 + b"0N")


@refused(ENDLESS)
def a_billion_laughs_in_lists():
    return beside(doubled(40, b"]", b"](h\xf0h\xf0e"))


@refused(ENDLESS)
def a_billion_laughs_in_tuples():
    return beside(doubled(60))


@refused(ENDLESS)
def a_billion_tensors():
    return beside(doubled(40, BODY))


@loads()
def a_billion_laughs_as_a_key():
    return beside(b"}" + doubled(60) + b"K\x01s")


@refused(ENDLESS)
def a_billion_laughs_in_a_set():
    return beside(b"\x8f(" + doubled(60) + b"\x90")


@refused(ENDLESS)
def tensors_under_names_that_take_a_gigabyte():
    return file(b"}" + text("x" * 4000) + doubled(18, BODY) + b"s")


@refused(ENDLESS)
def a_million_looks_at_a_million_attributes():
    attributes = b"}q\xf1(" + b"NN" * 500_000 + b"u"
    return beside(name("a.B") + b")\x81" + attributes + b"b" + doubled(20, b""))


@loads()
def keys_whose_hashes_collide():
    keys = b"".join(b"\x8a\x20" + (i * (2**61 - 1)).to_bytes(32, "little") for i in range(20_000))
    return beside(b"}(" + keys + b"u")


@loads()
def keys_without_a_hash():
    return beside(b"}(]K\x01}K\x02u")


@loads()
def keys_that_slow_the_hash_of_tuples():
    return beside(b"}(" + b"".join(doubled(30) + b"N" for _ in range(1000)) + b"u")


@loads()
def a_LONG_of_a_megabyte():
    return beside(b"\x8b" + struct.pack("<L", 2**20) + b"\x7f" * 2**20)


@loads()
def a_LONG_as_a_key():
    return beside(b"}\x8a\xff" + b"\x7f" * 255 + b"Ns")


@loads({"w": W, "9" * 21: W})
def a_LONG_as_a_name():
    number = b"\x8a\x09" + (10**21 - 1).to_bytes(9, "little")
    return file(b"}(" + text("w") + BODY + number + BODY + b"u")


END = "the pickle must be complete, found its end"


@refused(END)
def a_LONG_of_a_negative_length():
    return beside(b"\x8b\xff\xff\xff\xff")


@refused(END)
def a_text_of_four_gigabytes():
    return beside(b"X\xff\xff\xff\xff")


@refused(END)
def a_text_of_eight_exabytes():
    return beside(b"\x8d" + b"\xff" * 7 + b"\x7f")


@refused(END)
def bytes_of_two_to_the_64th():
    return beside(b"\x8e" + b"\xff" * 8)


@loads()
def a_frame_of_two_to_the_64th():
    return beside(b"\x95" + b"\xff" * 8 + b"N")


@loads()
def the_largest_place_in_the_memo():
    return beside(b"Nr\xff\xff\xff\xff0j\xff\xff\xff\xff")


@loads()
def a_hundred_thousand_places_in_the_memo():
    return beside(b"N" + b"".join(b"r" + struct.pack("<L", 2**31 + i) for i in range(100_000)))


@refused(BROKEN)
def a_place_in_the_memo_that_is_empty():
    return beside(b"j\xff\xff\xff\x7f")


@loads()
def half_a_million_lists():
    return beside(b"(" + b"]" * 500_000 + b"t0N")


@refused("'archive/data.pkl' must have at most [0-9]+ bytes, found 4000005; save only the state")
def a_flood_that_deflates_a_thousandfold():
    return deflated(b"(" + b"}" * 4_000_000 + b"t")


@refused("must have at most 1048576 opcodes, found more; save only the state dict")
def a_flood_of_dictionaries():
    return file(b"(" + b"}" * 1_200_000 + b"t")


@refused("must have at most 1048576 opcodes")
def a_flood_of_long_names():
    return file(text("x" * 128) + b"q\x00(" + b"h\x00h\x00\x93" * 400_000 + b"t")


@refused("must have at most 1048576 opcodes")
def a_flood_of_opcodes_that_do_nothing():
    return file(b"N0" * 600_000 + b"N")


@loads()
def a_hundred_thousand_calls():
    return beside(name("a.b") + b"q\xf00(" + b"h\xf0)R" * 100_000 + b"t")


@refused("the pickle must name classes by short texts, found int")
def STACK_GLOBAL_of_numbers():
    return beside(b"K\x01K\x02\x93", LONG)


@refused("the pickle must name classes by short texts, found Global")
def STACK_GLOBAL_of_a_class():
    return beside(name("a.b") + text("c") + b"\x93", LONG)


@refused("the pickle must name classes by short texts, found str")
def STACK_GLOBAL_of_a_long_name():
    return beside(stack_name("x" * 257, "y"), LONG)


@loads()
def classes_with_odd_names():
    odd = ["", ".", "..", "a..b", "../../etc/passwd", "\0", "\n\x1b[2J", "\ud800", "__class__"]
    return beside(b"(" + b"".join(stack_name(n, n) for n in odd) + b"t", LONG)


@refused("the pickle must call a class or function, found str")
def a_call_of_a_text():
    return beside(text("os.system") + b")R")


@refused("the pickle must call a class or function")
def a_call_with_a_list():
    return beside(name("os.mkdir") + b"]R")


@refused("the pickle must append to a list, found tuple")
def an_append_to_a_tuple():
    return beside(b")Na")


@refused("the pickle must put pairs into a dict")
def a_key_without_a_value():
    return beside(b"}(Nu")


@refused("the pickle must end with its value, found more")
def a_second_pickle_after_the_first():
    return file(b"}" + text("w") + BODY + b"s.\x80\x02N")


@refused("the pickle must end with its value")
def an_open_mark():
    return file(b"(N")


@refused(BROKEN)
def an_empty_stack():
    return file(b"")


@refused(BROKEN)
def a_stack_with_too_little():
    return file(b"N\x87")


@refused("the pickle must be of protocol 2 to 5")
def protocol_6():
    return file(b"N", b"\x80\x06")


@refused("the pickle must use the opcodes .* found opcode 64")
def protocol_0():
    return file(b"(dp0\n", b"")


@refused("the pickle must set the attributes of objects, found Tensor")
def a_tensor_that_becomes_another():
    """PyTorch has it see another storage."""
    return file(b"}" + text("w") + BODY + b"(" + STORAGE + b"K\x01K\x02\x85K\x01\x85tbs")


@refused("the keys of a dictionary must differ, found '1.0' twice")
def two_numbers_that_are_equal():
    return file(b"}(K\x01" + BODY + b"G" + struct.pack(">d", 1.0) + BODY + b"u")


@loads()
def numbers_that_are_equal_to_no_other():
    keys = (float("nan"), float("inf"), 1.5, 2.0)
    return beside(b"}(" + b"".join(b"G" + struct.pack(">d", key) + b"]" for key in keys) + b"u")


@refused("the keys of a dictionary must differ, found 'w' twice")
def two_texts_that_are_equal():
    other = name("__builtin__.str") + text("w") + b"\x85R"
    return file(b"}(" + text("w") + BODY + other + BODY + b"u")


@loads()
def numbers_of_python_2():
    return beside(b"(I140234567890123\nI-5\nI00\nI01\nt")


@refused("the pickle must have digits in its numbers")
def a_number_with_other_characters():
    return beside(b"I1_000\n")


@refused("the pickle must have digits in its numbers")
def a_number_without_digits():
    return beside(b"I-\n")


@refused("the pickle must have short lines")
def a_number_without_end():
    return beside(b"I" + b"9" * 10**6 + b"\n")


@loads()
def an_old_style_instance_of_python_2():
    return beside(b"(" + name("argparse.Namespace") + b"o}" + text("a") + b"K\x01sb")


@refused("the pickle must be complete, found a broken one")
def an_old_style_instance_of_nothing():
    return beside(b"(o")


@loads()
def a_long_key_compared_a_hundred_thousand_times():
    key = text("x" * 10**7)
    return beside(b"}" + key + b"q\xf0]s" + b"h\xf0]s" * 100_000)


@refused("a tensor must have an offset, a size, strides and one set of flags")
def a_long_shape_looked_at_a_hundred_thousand_times():
    shape = b"(" + b"K\x01" * 200_000 + b"tq\xf0"
    function = name("torch._utils._rebuild_tensor") + b"q\xf1"
    view = b"h\xf1(" + STORAGE + b"q\xf2K\x00h\xf0h\xf0tR"
    again = b"h\xf1(h\xf2K\x00h\xf0h\xf0tR"
    return file(b"](" + shape + b"0" + function + b"0" + view + again * 100_000 + b"e")


@refused("the pickle must use the opcodes .* found opcode 97")
def an_out_of_band_buffer():
    return beside(b"\x97", b"\x80\x05")


@refused("text in the pickle must be UTF-8")
def a_text_that_is_not_UTF_8():
    return beside(b"X\x02\x00\x00\x00\xc3\x28")


@refused("the name of a tensor must be UTF-8 text of at most 4096 characters")
def a_tensor_named_with_half_a_character():
    return saved({"\ud800": tensor(W)})


@refused("the name of a tensor must be UTF-8 text of at most 4096 characters, found 'xxx")
def a_tensor_with_a_name_of_a_megabyte():
    return saved({"x" * 2**20: tensor(W)})


NAMES = ("", "/etc/passwd", "../../w", "\0", "C:\\w", "a\nb", "\x1b[2J", "__class__")


@loads(dict.fromkeys(NAMES, W))
def tensors_with_the_names_of_other_things():
    return saved({n: tensor(W) for n in NAMES})


@refused("the names of tensors must differ, found 'a.b' twice")
def two_ways_to_one_name():
    return saved({"a": {"b": tensor(W)}, "a.b": tensor(W)})


@refused("the names of tensors must differ, found '1' twice")
def a_number_and_a_text_of_one_name():
    return saved({1: tensor(W), "1": tensor(W)})


@refused("the keys of a dictionary must differ, found '5' twice")
def a_number_that_occurs_twice_as_a_key():
    return file(b"}(K\x05" + BODY + b"M\x05\x00Nu")


@refused("the keys of a dictionary must differ, found 'w' twice")
def a_key_that_occurs_twice():
    return file(b"}(" + (text("w") + BODY) * 2 + b"u")


@refused("the keys of a dictionary must differ, found 'w' twice")
def a_key_that_occurs_again_without_a_tensor():
    return file(b"}(" + text("w") + BODY + text("w") + b"K\x05u")


@refused("the keys of a dictionary must differ, found 'w' twice")
def a_key_that_occurs_again_with_an_empty_dictionary():
    return file(b"}(" + text("w") + BODY + text("w") + b"}u")


@refused("must describe storages by type, key and size")
def a_persistent_id_that_is_a_text():
    return beside(text("storage") + b"Q")


@refused("must describe storages by type, key and size")
def a_persistent_id_of_a_module():
    return beside(b"(" + text("module") + name("a.B") + text("a.py") + text("x") + b"K\x01tQ")


@refused(r"record 'archive/data/\.\./\.\./data/0' must have 12 bytes, found no such record")
def a_storage_that_is_a_path():
    return file(b"}" + text("w") + BODY.replace(text("0"), text("../../data/0")) + b"s")


@refused(r"found only others, such as 'x' of 'torch.\\x1b\[2J.x\\ny'")
def an_element_type_that_takes_over_the_terminal():
    kind = stack_name("torch.\x1b[2J", "x\ny")
    return file(b"}" + text("x") + untyped(kind) + b"s", LONG)


def untyped(kind):
    """Push a tensor whose element type is what the opcodes `kind` push."""
    description = (
        b"(" + text("storage") + name("torch.storage.UntypedStorage") + text("0") + text("cpu")
    )
    function = name("torch._utils._rebuild_tensor_v3")
    view = b"K\x00K\x03\x85K\x01\x85\x89}"
    return function + b"(" + description + b"K\x0ctQ" + view + kind + b"tR"
