"""Safetensors files whose header lies, or is no JSON."""

import json

import numpy as np

from attacks.catalogue import RAW, W, loads, refused

NOT_JSON = "the header must be a JSON object in UTF-8"
FIELDS = "'w' must have dtype, shape and data_offsets, found other fields"


def file(header, data=RAW, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    return length.to_bytes(8, "little") + text + data


def w(**changes):
    return {"dtype": "F32", "shape": [3], "data_offsets": [0, 12], **changes}


@loads()
def a_file_as_it_should_be():
    return file({"__metadata__": {"format": "pt"}, "w": w()})


@refused("the header must fit the file's")
def a_header_longer_than_the_file():
    return file({"w": w()}, length=1000)


@refused("found other data, starting with the bytes ff ff ff ff ff ff ff ff")
def a_header_of_two_to_the_64th():
    return file({"w": w()}, length=2**64 - 1)


@refused(NOT_JSON)
def a_header_shorter_than_it_is():
    return file({"w": w()}, length=20)


@refused("the names in a JSON object must differ, found one that occurs twice")
def a_name_that_occurs_twice():
    one = json.dumps(w())
    return file(f'{{"w": {one}, "w": {one}}}'.encode())


@refused("the names in a JSON object must differ")
def a_name_that_occurs_twice_in_two_spellings():
    one = json.dumps(w())
    return file(f'{{"w": {one}, "\\u0077": {one}}}'.encode())


@refused("the names in a JSON object must differ")
def a_field_that_occurs_twice():
    return file(b'{"w": {"dtype":"F32","dtype":"I32","shape":[3],"data_offsets":[0,12]}}')


@refused("a JSON number must be finite, found NaN")
def a_NaN_in_the_header():
    return file(b'{"w": {"dtype":"F32","shape":[NaN],"data_offsets":[0,12]}}')


@refused("a JSON number must be finite, found -Infinity")
def an_infinity_in_the_header():
    return file(b'{"w": {"dtype":"F32","shape":[-Infinity],"data_offsets":[0,12]}}')


@refused("'w' must have a shape")
def a_Boolean_as_a_length():
    return file({"w": w(shape=[3, True])})


@refused("'w' must have two data_offsets")
def a_Boolean_as_an_offset():
    return file({"w": w(data_offsets=[False, 12])})


@refused("'w' must have a shape")
def a_float_as_a_length():
    return file({"w": w(shape=[3.0])})


@refused("'w' must have a shape")
def a_negative_length():
    return file({"w": w(shape=[-3])})


@refused("'w' must have a shape")
def a_length_beyond_64_bits():
    return file({"w": w(shape=[10**30])})


@refused("'w' must have at most 32 dimensions and")
def a_shape_that_overflows():
    return file({"w": w(shape=[2**32, 2**32, 3])})


@refused("'w' must have at most 32 dimensions and")
def a_thousand_dimensions():
    return file({"w": w(shape=[1] * 1000)})


@refused("'w' must have 16 bytes for its shape, found 12")
def a_shape_of_more_than_the_bytes():
    return file({"w": w(shape=[4])})


@refused("'w' must have 24 bytes for its shape, found 12")
def another_type_than_the_bytes():
    return file({"w": w(dtype="F64")})


@refused("'w' must start at byte 12 of the data, found 8")
def tensors_that_overlap():
    return file({"v": w(), "w": w(data_offsets=[8, 20])}, bytes(20))


@refused("'w' must start at byte 12 of the data, found 0")
def tensors_of_the_same_bytes():
    return file({"v": w(), "w": w()})


@refused("'w' must start at byte 12 of the data, found 16")
def a_hole_between_tensors():
    return file({"v": w(), "w": w(data_offsets=[16, 28])}, bytes(28))


@refused("the tensors must end with the file, at byte")
def bytes_after_the_tensors():
    return file({"w": w()}, RAW + b"\0")


@refused("the tensors must end with the file, at byte")
def a_tensor_beyond_the_end():
    return file({"w": w()}, RAW[:-1])


@refused("'w' must have two data_offsets")
def offsets_in_the_wrong_order():
    return file({"w": w(data_offsets=[12, 0])})


@refused("'w' must have two data_offsets")
def offsets_beyond_63_bits():
    return file({"w": w(data_offsets=[2**63, 2**63 + 12])})


@refused("'w' must have two data_offsets")
def three_offsets():
    return file({"w": w(data_offsets=[0, 6, 12])})


@refused(FIELDS)
def a_field_too_many():
    return file({"w": w(stride=[1])})


@refused(FIELDS)
def a_field_too_few():
    return file({"w": {"dtype": "F32", "shape": [3]}})


@refused(FIELDS)
def a_tensor_that_is_a_text():
    return file({"w": "F32"})


@refused("'w' must have a dtype")
def a_dtype_that_is_a_number():
    return file({"w": w(dtype=32)})


@refused("found only others, such as 'w' of 'F33'")
def a_dtype_that_is_unknown():
    return file({"w": w(dtype="F33")})


@refused("'__metadata__' must hold text by name")
def metadata_that_is_a_number():
    return file({"__metadata__": {"step": 5}, "w": w()})


@refused("'__metadata__' must hold text by name")
def metadata_that_is_a_tensor():
    return file({"__metadata__": w()})


@refused(NOT_JSON)
def a_header_a_million_levels_deep():
    return file(b'{"w": ' + b"[" * 10**6)


@refused(NOT_JSON)
def a_header_closed_a_million_levels_deep():
    return file(b'{"w": ' + b'{"a":' * 10**5 + b"1" + b"}" * 10**5 + b"}")


@refused("a JSON number must have at most 32 digits, found more")
def a_number_of_a_million_digits():
    return file(b'{"w": {"dtype":"F32","shape":[' + b"9" * 10**6 + b'],"data_offsets":[0,12]}}')


@refused("'w' must have a shape")
def a_number_with_a_huge_exponent():
    return file(b'{"w": {"dtype":"F32","shape":[1e999999999],"data_offsets":[0,12]}}')


@refused(NOT_JSON)
def a_header_that_is_not_UTF_8():
    return file(b'{"\xff": {"dtype":"F32","shape":[3],"data_offsets":[0,12]}}')


@refused(NOT_JSON)
def a_header_in_UTF_16():
    return file(json.dumps({"w": w()}).encode("utf-16-le"))


@refused("found other data, starting with the bytes")
def a_header_with_a_byte_order_mark():
    return file(b"\xef\xbb\xbf" + json.dumps({"w": w()}).encode())


@refused("found other data, starting with the bytes")
def a_header_that_is_a_list():
    return file([w()])


@refused(NOT_JSON)
def two_objects():
    return file(b"{}" + json.dumps({"w": w()}).encode())


@refused("the header must have at most 8388608 bytes, found 100000000")
def a_header_of_a_hundred_megabytes():
    def make(path):
        with path.open("wb") as target:
            target.write((10**8).to_bytes(8, "little") + b"{")
            target.truncate(10**8 + 8)

    return make


@loads()
def a_header_padded_with_a_megabyte_of_spaces():
    return file(json.dumps({"w": w()}).encode() + b" " * 2**20)


@loads({f"{i}": np.zeros(0, np.float32) for i in range(20_000)})
def twenty_thousand_empty_tensors():
    empty = w(shape=[0], data_offsets=[0, 0])
    return file({f"{i}": empty for i in range(20_000)}, b"")


@refused(r"the name of a tensor must be UTF-8 text .* found '\\ud800'")
def a_name_with_half_a_character():
    return file(b'{"\\ud800": {"dtype":"F32","shape":[3],"data_offsets":[0,12]}}')


@refused("the name of a tensor must be UTF-8 text of at most 4096 characters")
def a_name_of_a_megabyte():
    return file({"x" * 2**20: w()})


@loads({"../../etc/passwd": W})
def a_name_that_climbs():
    return file({"../../etc/passwd": w()})


@loads({"\0\n\x1b[2J": W})
def a_name_of_control_characters():
    return file({"\0\n\x1b[2J": w()})


@loads({"": W})
def a_name_without_characters():
    return file({"": w()})


@refused("the file must hold a Boolean, integer or float tensor, found none")
def no_tensors():
    return file({}, b"")
