"""NumPy archives whose arrays run code, or claim what is not there."""

import io

import numpy as np
from torch_files import pickled, zipped

from attacks.archives import npy
from attacks.catalogue import RAW, W, loads, refused
from attacks.payloads import python
from attacks.pickles import call

PREAMBLE = "record 'w.npy' must state its type and shape"


def array(descr="'<f4'", order="False", shape="(3,)", data=RAW, **how):
    fields = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"
    return preamble(fields, data, **how)


def preamble(text, data=RAW, magic=b"\x93NUMPY\x01\x00", length=None):
    raw = text.encode("latin-1")
    return magic + (len(raw) if length is None else length).to_bytes(2, "little") + raw + data


def file(content):
    return zipped({"w.npy": content})


@loads()
def an_array_as_it_should_be():
    return file(array())


@refused("'w' of object; pickled objects are never loaded: save plain arrays", live=("numpy",))
def an_array_of_objects(m):
    return file(array("'|O'", data=pickled(call("os.mkdir", m), 4)[0]))


@loads(live=("numpy",))
def an_array_of_objects_beside_the_weights(m):
    objects = array("'|O'", data=pickled(call("os.mkdir", m), 4)[0])
    return zipped({"w.npy": array(), "x.npy": objects})


@refused("found only others, such as 'w' of structured")
def a_structure_with_objects():
    return file(array("[('a', '<f4'), ('b', '|O')]"))


@refused(PREAMBLE, live=("eval",))
def a_call_as_the_type(m):
    return file(array(python(m)))


@refused(PREAMBLE, live=("eval",))
def a_call_as_the_shape(m):
    return file(array(shape=f"({python(m)},)"))


@refused(PREAMBLE, live=("eval",))
def a_call_as_a_field(m):
    return file(preamble(f"{{'descr': '<f4', 'x': {python(m)}, 'shape': (3,)}}\n"))


@refused(PREAMBLE, live=("eval",))
def a_call_after_the_dictionary(m):
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}"
    return file(preamble(f"{text}, {python(m)}\n"))


@refused(PREAMBLE, live=("eval",))
def a_call_before_the_dictionary(m):
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}"
    return file(preamble(f"{python(m)} or {text}\n"))


@refused(r"record 'w\.npy' must have \d+ bytes for its shape, found \d+ bytes")
def a_shape_of_a_terabyte():
    return file(array(shape="(274877906944,)"))


@refused(r"record 'w\.npy' must have at most 32 dimensions and")
def a_shape_that_overflows():
    return file(array(shape="(4294967296, 4294967296, 3)"))


@refused(r"record 'w\.npy' must have at most 32 dimensions and")
def an_empty_shape_that_overflows():
    return file(array(shape="(0, 9999999999999, 9999999999999)", data=b""))


@refused(r"record 'w\.npy' must have at most 32 dimensions and")
def ten_thousand_dimensions():
    return file(array(shape="(" + "1," * 10_000 + ")"))


@refused(PREAMBLE)
def a_negative_length():
    return file(array(shape="(-3,)"))


@refused(PREAMBLE)
def a_Boolean_as_a_length():
    return file(array(shape="(True, 3)"))


@refused(PREAMBLE)
def a_float_as_a_length():
    return file(array(shape="(3.0,)"))


@refused(PREAMBLE)
def a_length_of_a_hundred_digits():
    return file(array(shape="(" + "9" * 100 + ",)"))


@refused(PREAMBLE)
def a_shape_that_is_a_list():
    return file(array(shape="[3]"))


@refused(PREAMBLE)
def an_order_that_is_a_number():
    return file(array(order="1"))


@loads({"w": np.float32([[1, 3], [2, 4]])})
def the_order_of_Fortran():
    data = np.float32([1, 2, 3, 4]).tobytes()
    return file(array(order="True", shape="(2, 2)", data=data))


@loads({"w": W})
def a_vector_in_the_order_of_Fortran():
    return file(array(order="True"))


@loads({"w": np.float32(1).reshape(())})
def a_scalar_in_the_order_of_Fortran():
    return file(array(order="True", shape="()", data=RAW[:4]))


@refused("'w' of ''x, y''|'w' of")
def a_type_that_is_unknown():
    return file(array("'x, y'"))


@refused("found only others, such as 'w' of int128")
def an_integer_of_128_bits():
    return file(array("'<i16'", shape="()", data=bytes(16)))


@refused("found only others, such as 'w' of")
def a_text_of_a_billion_characters():
    return file(array("'<U1000000000'", data=b""))


@refused(PREAMBLE)
def a_field_that_is_missing():
    return file(preamble("{'descr': '<f4', 'shape': (3,)}\n"))


@refused(PREAMBLE)
def a_field_that_occurs_twice():
    return file(preamble("{'descr': '<f4', 'descr': '<i4', 'shape': (3,)}\n"))


@refused(PREAMBLE)
def fields_sixty_thousand_brackets_deep():
    return file(preamble("{'descr': " + "[" * 60_000))


@refused(PREAMBLE)
def brackets_that_make_expressions_backtrack():
    return file(preamble("{'descr': [" + "]" * 60_000))


@refused(PREAMBLE)
def spaces_that_make_expressions_backtrack():
    return file(preamble("{" + " " * 30_000 + "'descr'" + " " * 30_000))


@refused(PREAMBLE)
def digits_that_make_expressions_backtrack():
    return file(preamble("{'shape': (" + "1, " * 20_000))


@refused(PREAMBLE)
def a_preamble_longer_than_the_record():
    return file(array(length=60_000))


@refused("must be an array of format 1 to 3")
def format_4():
    return file(array(magic=b"\x93NUMPY\x04\x00"))


@refused("must be an array of format 1 to 3")
def an_empty_record():
    return file(b"")


@refused("must be an array of format 1 to 3")
def a_record_that_is_a_pickle():
    return file(pickled([1.0] * 9)[0])


@refused(r"record 'w\.npy' must have \d+ bytes for its shape, found \d+ bytes")
def a_byte_too_few():
    return file(array(data=RAW[:-1]))


@refused(r"record 'w\.npy' must have \d+ bytes for its shape, found \d+ bytes")
def a_byte_too_many():
    return file(array(data=RAW + b"\0"))


@refused("a single array")
def an_array_without_an_archive():
    return npy(W)


def in_memory(save, **arrays):
    target = io.BytesIO()
    save(target, **arrays)
    return target.getvalue()


@loads({"../w": W})
def a_name_that_climbs():
    return in_memory(np.savez, **{"../w": W})
