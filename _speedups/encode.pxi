# The encoder: one event to one frame, with one copy of the payload.
#
# Theory of operation. A first pass over the data counts its line ends and so determines the exact size of the frame.
# The frame is allocated once, and each line is copied into it. If the format cannot carry a value unchanged, or the
# frame is too large, this encoder calls its Python counterpart, which raises the error. So each message exists once,
# and a valid event costs one comparison per rule.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memchr, memcpy

from relay._native.codec import RETRY_MS_MAX as _RETRY_MS_MAX
from relay._native.codec import encode_event as _refuse

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    const char *PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    object PyUnicode_DecodeUTF8(const char *text, Py_ssize_t size, const char *errors)

cdef enum:
    COUNT_BLOCK = 240           # bytes that a counter of eight bits can count, a multiple of the vector size
    RETRY_DIGITS_MAX = 10
    # The sizes of the constant parts of a frame: `event: ` and so on, each with its line end.
    EVENT_BYTES = 8
    ID_BYTES = 5
    RETRY_BYTES = 8
    DATA_BYTES = 7
    EMPTY_LINE_BYTES = 1
    LINE_END_BYTES = 2          # the CRLF after the size of an HTTP chunk and after its content

cdef long long RETRY_MS_MAX = _RETRY_MS_MAX
cdef uint64_t HIGH_BITS = 0x8080808080808080

cdef struct Text:
    const char *start
    Py_ssize_t size

cdef struct LineEnds:
    Py_ssize_t lf
    Py_ssize_t cr
    Py_ssize_t crlf


cdef inline int _take_utf8(object value, Text *text) except -1:
    # Gets the UTF-8 bytes of a string, which still owns them. Raises if it has a lone surrogate.
    if PyUnicode_IS_COMPACT_ASCII(value):
        text.start = PyUnicode_DATA(value)
        text.size = PyUnicode_GET_LENGTH(value)
    else:
        text.start = PyUnicode_AsUTF8AndSize(value, &text.size)
    return 0


cdef inline bint _has(const Text *text, char byte) noexcept nogil:
    return memchr(text.start, byte, text.size) != NULL


cdef inline bint _take_field(object value, Text *text) except -1:
    # Returns False if no field can carry the value.
    if not isinstance(value, str):
        return False
    _take_utf8(value, text)
    return text.size > 0 and not _has(text, c"\n") and not _has(text, c"\r")


cdef bint _take_retry(object value, char *digits, Text *text) except -1:
    cdef int overflow = 0
    cdef long long retry_ms
    cdef char *start = digits + RETRY_DIGITS_MAX
    if not PyLong_CheckExact(value):
        return False
    retry_ms = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow or not 0 <= retry_ms <= RETRY_MS_MAX:
        return False
    while retry_ms > 0 or start == digits + RETRY_DIGITS_MAX:
        start -= 1
        start[0] = c"0" + <char>(retry_ms % 10)
        retry_ms //= 10
    text.start = start
    text.size = digits + RETRY_DIGITS_MAX - start
    return True


cdef bint _is_ascii(const Text *text) noexcept nogil:
    cdef uint64_t word, seen = 0
    cdef Py_ssize_t place = 0
    while place + 8 <= text.size:
        memcpy(&word, text.start + place, 8)
        seen |= word
        place += 8
    while place < text.size:
        seen |= <uint64_t>(<uint8_t>text.start[place]) << 56
        place += 1
    return seen & HIGH_BITS == 0


cdef bint _take_data(object value, Text *text) except -1:
    if isinstance(value, str):
        _take_utf8(value, text)
    elif isinstance(value, bytes):
        text.start = PyBytes_AS_STRING(value)
        text.size = PyBytes_GET_SIZE(value)
        if not _is_ascii(text):
            PyUnicode_DecodeUTF8(text.start, text.size, NULL)
    else:
        return False
    return True


cdef LineEnds _count_line_ends(const Text *text) noexcept nogil:
    # Counts in blocks, so that the compiler can count sixteen bytes at once in counters of eight bits. Reading the byte
    # after the last is safe, because strings and bytes end with a NUL.
    cdef const char *start = text.start
    cdef Py_ssize_t place = 0, stop
    cdef uint8_t lf, cr, crlf
    cdef LineEnds ends = LineEnds(0, 0, 0)
    while place < text.size:
        lf = cr = crlf = 0
        stop = min(place + COUNT_BLOCK, text.size)
        while place < stop:
            lf += start[place] == c"\n"
            cr += start[place] == c"\r"
            crlf += (start[place] == c"\r") & (start[place + 1] == c"\n")
            place += 1
        ends.lf += lf
        ends.cr += cr
        ends.crlf += crlf
    return ends


cdef inline char *_put(char *end, const char *part, Py_ssize_t size) noexcept nogil:
    memcpy(end, part, size)
    return end + size


cdef inline char *_put_line(char *end, const char *line, Py_ssize_t size) noexcept nogil:
    end = _put(_put(end, b"data: ", 6), line, size)
    end[0] = c"\n"
    return end + 1


cdef char *_put_lines(char *end, const Text *text, const LineEnds *ends) noexcept nogil:
    # Most texts have one kind of line end, so there is one byte to search for.
    cdef char mark = c"\r" if ends.cr else c"\n"
    cdef bint mixed = ends.cr and ends.lf != ends.crlf
    cdef const char *line = text.start
    cdef const char *stop = line + text.size
    cdef const char *found
    while True:
        if mixed:
            found = line
            while found < stop and found[0] != c"\n" and found[0] != c"\r":
                found += 1
        else:
            found = <const char *>memchr(line, mark, stop - line)
        if found == NULL or found == stop:
            return _put_line(end, line, stop - line)
        end = _put_line(end, line, found - line)
        line = found + (2 if found[0] == c"\r" and found[1] == c"\n" else 1)


cdef inline int _hex_digits(Py_ssize_t size) noexcept nogil:
    # Returns the number of hexadecimal digits of a size above 0.
    cdef int digits = 0
    while size:
        size >>= 4
        digits += 1
    return digits


cdef inline char *_put_chunk_head(char *end, Py_ssize_t size, int digits) noexcept nogil:
    # Writes the size of a chunk as `digits` hexadecimal digits, and CRLF (RFC 9112 section 7.1).
    cdef int place = digits
    while place:
        place -= 1
        end[place] = b"0123456789abcdef"[size & 15]
        size >>= 4
    return _put(end + digits, b"\r\n", 2)


cdef bytes _encode(object data, object event, object id, object retry, Py_ssize_t bytes_max, bint in_chunk):
    # Returns the frame, or None if the event is rejected.
    cdef Text event_text = Text(NULL, 0)
    cdef Text id_text = event_text, retry_text = event_text, data_text = event_text
    cdef LineEnds ends = LineEnds(0, 0, 0)
    cdef char digits[RETRY_DIGITS_MAX]
    cdef Py_ssize_t size = EMPTY_LINE_BYTES
    if event is not None:
        if not _take_field(event, &event_text):
            return None
        size += EVENT_BYTES + event_text.size
    if id is not None:
        if not _take_field(id, &id_text) or _has(&id_text, 0):
            return None
        size += ID_BYTES + id_text.size
    if retry is not None:
        if not _take_retry(retry, digits, &retry_text):
            return None
        size += RETRY_BYTES + retry_text.size
    if data is not None:
        if not _take_data(data, &data_text):
            return None
        ends = _count_line_ends(&data_text)
        size += data_text.size - ends.lf - ends.cr + DATA_BYTES * (1 + ends.lf + ends.cr - ends.crlf)
    if size > bytes_max:
        return None

    cdef int size_digits = _hex_digits(size) if in_chunk else 0
    cdef bytes frame = PyBytes_FromStringAndSize(NULL, size + size_digits + 2 * LINE_END_BYTES if in_chunk else size)
    cdef char *end = PyBytes_AS_STRING(frame)
    if in_chunk:
        end = _put_chunk_head(end, size, size_digits)
    if event_text.start != NULL:
        end = _put(_put(_put(end, b"event: ", 7), event_text.start, event_text.size), b"\n", 1)
    if id_text.start != NULL:
        end = _put(_put(_put(end, b"id: ", 4), id_text.start, id_text.size), b"\n", 1)
    if retry_text.start != NULL:
        end = _put(_put(_put(end, b"retry: ", 7), retry_text.start, retry_text.size), b"\n", 1)
    if data_text.start != NULL:
        if ends.lf or ends.cr:
            end = _put_lines(end, &data_text, &ends)
        else:
            end = _put_line(end, data_text.start, data_text.size)
    end[0] = c"\n"
    if in_chunk:
        _put(end + 1, b"\r\n", 2)
    return frame


def encode_event(data, event, id, retry, Py_ssize_t bytes_max, bint in_chunk=False):
    """Encode one event as one frame; see `relay._native.codec.encode_event`."""
    cdef bytes frame
    try:
        frame = _encode(data, event, id, retry, bytes_max, in_chunk)
    except UnicodeError:
        frame = None
    return _refuse(data, event, id, retry, bytes_max) if frame is None else frame
