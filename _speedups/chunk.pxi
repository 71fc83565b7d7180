# The engine's arguments: chunks, which are sent to many streams, and members, the streams of one audience.

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc


cdef Py_ssize_t _chunks = 0  # Chunk objects in this process


cdef struct Check:
    uint32_t crc      # CRC-32 of some content
    uint32_t size     # its bytes modulo 2^32, as the trailer of gzip counts them
    uint32_t factor   # multiplies the CRC of the bytes before the content; see checksum.pxi


cdef class Chunk:
    """Entries joined into one buffer, which the engine sends to many streams.

    Args:
        frames: the frames, at least one.
        sequences: their sequences, in ascending order.
        cursor: the cursor of a stream that has received all of them.
        checks: for a compressed form, the CRC-32 and the size of the content of each frame; else None.
        events: number of events, if the only frame holds several; 0 for one per frame.
    """

    cdef readonly bytes data
    cdef readonly uint64_t cursor
    cdef list frames          # owns the frames; a stream can hold a half-sent frame without the others
    cdef uint64_t *sequences  # owned, of `count`
    cdef uint32_t *ends       # owned, of `count`: offset in `data` after each frame
    cdef Py_ssize_t count
    cdef Py_ssize_t events    # in all frames
    cdef Check *checks        # owned, of `count`; NULL unless the form is compressed
    cdef Check check          # of all frames

    def __cinit__(self, list frames, sequences, uint64_t cursor, list checks=None, Py_ssize_t events=0):
        cdef Py_ssize_t row, end = 0
        global _chunks
        _chunks += 1
        self.count = len(frames)
        self.events = events if events else self.count
        if self.count == 0 or len(sequences) != self.count:
            raise ValueError("a chunk has one sequence for each of its frames, and at least one")
        self.sequences = <uint64_t *>malloc(self.count * sizeof(uint64_t))
        self.ends = <uint32_t *>malloc(self.count * sizeof(uint32_t))
        if self.sequences == NULL or self.ends == NULL:
            raise MemoryError
        self.frames = frames
        self.cursor = cursor
        self.data = <bytes>frames[0] if self.count == 1 else b"".join(frames)
        for row in range(self.count):
            end += len(<bytes>frames[row])
            self.ends[row] = end
            self.sequences[row] = sequences[row]
        if checks is not None:
            self._take_checks(checks)

    cdef int _take_checks(self, list checks) except -1:
        cdef Py_ssize_t row
        cdef uint32_t crc, size
        cdef uint64_t whole = 0
        if len(checks) != self.count:
            raise ValueError("a chunk of a compressed form has one check for each of its frames")
        self.checks = <Check *>malloc(self.count * sizeof(Check))
        if self.checks == NULL:
            raise MemoryError
        self.check = Check(0, 0, CRC_ONE)
        for row in range(self.count):
            crc, size = checks[row]
            if row and size == self.checks[row - 1].size:
                self.checks[row] = Check(crc, size, self.checks[row - 1].factor)
            else:
                self.checks[row] = Check(crc, size, _crc_factor(size))
            self.check.crc = _crc_multiply(self.checks[row].factor, self.check.crc) ^ crc
            whole += size
        self.check.size = <uint32_t>whole
        self.check.factor = _crc_factor(whole)
        return 0

    def __dealloc__(self):
        global _chunks
        _chunks -= 1
        free(self.sequences)
        free(self.ends)
        free(self.checks)

    def __len__(self):
        return self.count

    cdef Py_ssize_t row_of_cursor(self, uint64_t cursor) noexcept nogil:
        # Returns the first row at or after the cursor.
        cdef Py_ssize_t low = 0, high = self.count, middle
        if cursor <= self.sequences[0]:
            return 0
        while low < high:
            middle = (low + high) // 2
            if self.sequences[middle] < cursor:
                low = middle + 1
            else:
                high = middle
        return low

    cdef Py_ssize_t row_of_offset(self, Py_ssize_t offset) noexcept nogil:
        # Returns the row of the frame that contains the byte at `offset`.
        cdef Py_ssize_t low = 0, high = self.count, middle
        while low < high:
            middle = (low + high) // 2
            if self.ends[middle] <= offset:
                low = middle + 1
            else:
                high = middle
        return low


cdef class Members:
    """The handles of one audience's streams; some may be stale."""

    cdef uint64_t *handles    # owned
    cdef Py_ssize_t count
    cdef Py_ssize_t room

    def __dealloc__(self):
        free(self.handles)

    def __len__(self):
        return self.count

    cdef int push(self, uint64_t handle) except -1:
        cdef Py_ssize_t room
        cdef uint64_t *handles
        if self.count == self.room:
            room = self.room * 2 if self.room else 2
            handles = <uint64_t *>realloc(self.handles, room * sizeof(uint64_t))
            if handles == NULL:
                raise MemoryError
            self.handles, self.room = handles, room
        self.handles[self.count] = handle
        self.count += 1
        return 0
