# The decoder. `relay._native.codec.Decoder`, its Python counterpart, describes the theory and has the same names.
#
# This decoder finds line ends with memchr, which searches the available bytes once for each kind of line end. It keeps
# the unfinished line and the data of the block in two buffers, which grow and are reused.

from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.string cimport memcmp

from relay._native.codec import BOM as _BOM
from relay._native.codec import too_large as _too_large
from relay.event import Event as _Event

cdef enum:
    BUFFER_BYTES_MIN = 256

cdef struct Buffer:
    # Owned by the decoder: `size` bytes of `room` are in use.
    char *start
    Py_ssize_t size
    Py_ssize_t room


cdef int _append_to(Buffer *buffer, const char *part, Py_ssize_t size) except -1:
    cdef Py_ssize_t room
    cdef char *start
    if size == 0:
        return 0
    if buffer.size + size > buffer.room:
        room = max(BUFFER_BYTES_MIN, 2 * buffer.room, buffer.size + size)
        start = <char *>PyMem_Realloc(buffer.start, room)
        if start == NULL:
            raise MemoryError()
        buffer.start = start
        buffer.room = room
    memcpy(buffer.start + buffer.size, part, size)
    buffer.size += size
    return 0


cdef inline bint _is(const Text *name, const char *wanted, Py_ssize_t size) noexcept nogil:
    return name.size == size and memcmp(name.start, wanted, size) == 0


cdef class Decoder:
    """Decode an event stream, in pieces of any size; see `relay._native.codec.Decoder`."""

    cdef readonly str last_event_id
    cdef readonly object retry_ms
    cdef Py_ssize_t _bytes_max
    # Input that needs more bytes: the first bytes, until they show whether the stream begins with a BOM (then
    # None), a CR that may be followed by a LF, and the unfinished line.
    cdef bytes _start
    cdef bint _after_cr
    cdef Buffer _line
    # Results for the next feed(): completed events, and the refused blocks, of which `_told` are already reported.
    cdef list _events
    cdef readonly Py_ssize_t refused
    cdef Py_ssize_t _told
    # The block: bytes of its lines, and its fields so far.
    cdef Py_ssize_t _size
    cdef Buffer _data
    cdef bint _has_data
    cdef str _event
    cdef str _id
    cdef object _retry
    cdef bint _refusing

    def __cinit__(self, Py_ssize_t bytes_max=1024 * 1024, str last_event_id not None=""):
        self.last_event_id = last_event_id
        self.retry_ms = None
        self._bytes_max = bytes_max
        self._start = b""
        self._events = []
        self._reset()

    def __dealloc__(self):
        PyMem_Free(self._line.start)
        PyMem_Free(self._data.start)

    @property
    def unfinished(self):
        """Whether a block has begun but its empty line has not arrived."""
        return bool(self._has_data or (self._line.size > 0 and self._line.start[0] != c":"))

    def feed(self, bytes data not None):
        """Decode the next bytes of the stream and return the events that they complete."""
        if self._start is not None:
            data = self._start + data
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._start = data
                return []
            self._start = None
            data = data.removeprefix(_BOM)
        self._feed(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        if self.refused > self._told:
            self._told = self.refused
            raise _too_large(self._bytes_max)
        events, self._events = self._events, []
        return events

    cdef int _feed(self, const char *line, Py_ssize_t size) except -1:
        cdef const char *stop = line + size
        cdef const char *lf
        cdef const char *cr
        cdef const char *found
        if size == 0:
            return 0
        if self._after_cr and line[0] == c"\n":
            line += 1
        self._after_cr = False
        lf = <const char *>memchr(line, c"\n", stop - line)
        cr = <const char *>memchr(line, c"\r", stop - line)
        while lf != NULL or cr != NULL:
            found = lf if cr == NULL or (lf != NULL and lf < cr) else cr
            if self._line.size:
                _append_to(&self._line, line, found - line)
                self._take(self._line.start, self._line.size)
                self._line.size = 0
            else:
                self._take(line, found - line)
            line = found + 1
            if found == cr:
                self._after_cr = line == stop
                if line == lf:
                    line += 1
                cr = <const char *>memchr(line, c"\r", stop - line)
            if lf != NULL and lf < line:
                lf = <const char *>memchr(line, c"\n", stop - line)
        return self._keep(line, stop - line)

    cdef int _keep(self, const char *rest, Py_ssize_t size) except -1:
        # Keeps only a colon of a comment or of a line that is too long. The rest of the line is then a comment.
        cdef bint passing
        if size == 0:
            return 0
        passing = (self._line.start[0] if self._line.size else rest[0]) == c":"
        if not passing:
            if self._size + self._line.size + size <= self._bytes_max:
                return _append_to(&self._line, rest, size)
            self._refuse()
        self._line.size = 0
        return _append_to(&self._line, b":", 1)

    cdef int _take(self, const char *line, Py_ssize_t size) except -1:
        cdef Text name, value
        if size == 0:
            return self._dispatch()
        if line[0] == c":":
            return 0
        if self._size + size + 1 > self._bytes_max:
            return self._refuse()
        name.start = line
        value.start = <const char *>memchr(line, c":", size)
        if value.start == NULL:
            name.size = size
            value.start = line + size
        else:
            name.size = value.start - line
            value.start += 1
            if value.start < line + size and value.start[0] == c" ":
                value.start += 1
        value.size = line + size - value.start
        if _is(&name, b"id", 2) and not _has(&value, 0):
            self._id = PyUnicode_DecodeUTF8(value.start, value.size, b"replace")
        if self._refusing:
            return 0
        self._size += size + 1
        return self._take_field(&name, &value)

    cdef int _take_field(self, const Text *name, const Text *value) except -1:
        if _is(name, b"data", 4):
            if self._has_data:
                _append_to(&self._data, b"\n", 1)
            self._has_data = True
            _append_to(&self._data, value.start, value.size)
        elif _is(name, b"event", 5):
            self._event = PyUnicode_DecodeUTF8(value.start, value.size, b"replace")
        elif _is(name, b"retry", 5):
            self._take_retry(value)
        return 0

    cdef int _take_retry(self, const Text *value) except -1:
        cdef long long retry_ms = 0
        cdef Py_ssize_t place
        for place in range(value.size):
            if not c"0" <= value.start[place] <= c"9":
                return 0
            retry_ms = min(retry_ms * 10 + (value.start[place] - c"0"), RETRY_MS_MAX)
        if value.size:
            self._retry = self.retry_ms = retry_ms
        return 0

    cdef int _dispatch(self) except -1:
        if self._id is not None:
            self.last_event_id = self._id
        if self._has_data:
            data = PyUnicode_DecodeUTF8(self._data.start, self._data.size, b"replace")
            self._events.append(_Event(data, self._event or None, self._id or None, self._retry))
        self._reset()
        return 0

    cdef int _refuse(self) except -1:
        if self._refusing:
            return 0
        id = self._id
        self.refused += 1
        self._reset()
        self._id = id
        self._refusing = True
        return 0

    cdef int _reset(self) except -1:
        self._size = EMPTY_LINE_BYTES
        self._data.size = 0
        self._has_data = False
        self._event = self._id = None
        self._retry = None
        self._refusing = False
        return 0
