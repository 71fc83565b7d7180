# What the engine is handed: chunks, which many streams are sent, and members, the streams of one audience.

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc


cdef Py_ssize_t _chunks = 0  # Chunk objects in this process


cdef class Chunk:
    """Entries joined into one buffer that many streams are sent.

    Args:
        frames: the frames, at least one.
        sequences: their sequences, rising.
        cursor: the cursor of a stream that has them all.
    """

    cdef readonly bytes data
    cdef readonly uint64_t cursor
    cdef list frames          # owns the frames, so that a half-sent one can be held without the rest
    cdef uint64_t *sequences  # owned, of `count`
    cdef uint32_t *ends       # owned, of `count`: offset in `data` after each frame
    cdef Py_ssize_t count

    def __cinit__(self, list frames, sequences, uint64_t cursor):
        cdef Py_ssize_t row, end = 0
        global _chunks
        _chunks += 1
        self.count = len(frames)
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

    def __dealloc__(self):
        global _chunks
        _chunks -= 1
        free(self.sequences)
        free(self.ends)

    def __len__(self):
        return self.count

    cdef Py_ssize_t row_of_cursor(self, uint64_t cursor) noexcept nogil:
        # The first row at or after the cursor.
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
        # The row whose frame holds the byte at `offset`.
        cdef Py_ssize_t low = 0, high = self.count, middle
        while low < high:
            middle = (low + high) // 2
            if self.ends[middle] <= offset:
                low = middle + 1
            else:
                high = middle
        return low


cdef class Members:
    """The streams of one audience, as the engine walks them: an array of handles, which may hold stale ones."""

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
