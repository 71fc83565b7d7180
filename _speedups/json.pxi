# Converts the JSON text of an event's data; see `relay._native.jsontext`.
#
# The text has been parsed, so it is well formed: a quotation mark outside a string begins one, and a backslash
# inside a string is followed by the character that it escapes. The first pass counts white space and depth. Most
# texts have no white space and are returned as they are.

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from msgspec import UNSET as _UNSET
from msgspec import Raw as _Raw

from relay._native.jsontext import decode_string as _decode_string
from relay._native.jsontext import too_deep as _too_deep


cdef inline bint _is_space(char byte) noexcept nogil:
    return byte == c" " or byte == c"\n" or byte == c"\r" or byte == c"\t"


cdef Py_ssize_t _end_of_string(const char *text, Py_ssize_t place, Py_ssize_t size) noexcept nogil:
    # Returns the place after the quotation mark that ends the string whose first character is at `place`.
    while place < size and text[place] != c'"':
        place += 2 if text[place] == c"\\" else 1
    return min(place + 1, size)


cdef Py_ssize_t _count_spaces(const char *text, Py_ssize_t size, Py_ssize_t depth_max) noexcept nogil:
    # Returns the number of white-space characters outside strings, or -1 if the text is nested too deeply.
    cdef Py_ssize_t place = 0, spaces = 0, depth = 0
    cdef char byte
    while place < size:
        byte = text[place]
        place += 1
        if byte == c'"':
            place = _end_of_string(text, place, size)
        elif byte == c"{" or byte == c"[":
            depth += 1
            if depth > depth_max:
                return -1
        elif byte == c"}" or byte == c"]":
            depth -= 1
        else:
            spaces += _is_space(byte)
    return spaces


def compact_json(bytes text not None, Py_ssize_t depth_max):
    """Return JSON text without the white space between its tokens; see `relay._native.jsontext.compact_json`."""
    cdef const char *start = PyBytes_AS_STRING(text)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(text), place = 0, end
    cdef Py_ssize_t spaces = _count_spaces(start, size, depth_max)
    cdef bytes compact
    cdef char *out
    if spaces < 0:
        raise _too_deep(depth_max)
    if spaces == 0:
        return text
    compact = PyBytes_FromStringAndSize(NULL, size - spaces)
    out = PyBytes_AS_STRING(compact)
    while place < size:
        if start[place] == c'"':
            end = _end_of_string(start, place + 1, size)
            out = _put(out, start + place, end - place)
            place = end
        else:
            if not _is_space(start[place]):
                out[0] = start[place]
                out += 1
            place += 1
    return compact


def json_data(raw, Py_ssize_t depth_max):
    """Return the data of an event from its JSON text; see `relay._native.jsontext.json_data`."""
    cdef Py_buffer view
    cdef const char *start
    PyObject_GetBuffer(raw, &view, PyBUF_SIMPLE)
    try:
        start = <const char *>view.buf
        if view.len == 0:
            return _UNSET
        if start[0] != c'"':
            return _Raw(compact_json(PyBytes_FromStringAndSize(start, view.len), depth_max))
        if memchr(start, c"\\", view.len) == NULL:
            return PyUnicode_DecodeUTF8(start + 1, view.len - 2, NULL)
        return _decode_string(PyBytes_FromStringAndSize(start, view.len))
    finally:
        PyBuffer_Release(&view)
