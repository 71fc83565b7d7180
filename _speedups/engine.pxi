# The engine of streams: an array of structs, one epoll descriptor, and send().
#
# Theory of operation. A stream is a row of `Engine._streams`. Its handle is generation << 32 | row, so that the engine
# detects a stale handle. A LIVE stream has received everything of its audiences up to the last flush; broadcast() sends
# it the flush's chunk. If the kernel does not accept a whole send, the stream is BEHIND: it keeps only a reference to
# the half-sent frame (`pending`, `offset`) and the cursor after it. Epoll is edge-triggered, and a descriptor is
# registered once for the life of its stream. A change between LIVE and BEHIND therefore costs no system call. poll()
# returns the streams that became writable, and the hub continues them with write(). close() sends the rest and the end
# (CLOSING), and then waits until the peer closes (ENDED). abort() or a failure marks a stream as DEAD. sweep() closes
# the descriptors of DEAD streams.

from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_DECREF, Py_XDECREF
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset
from posix.unistd cimport close
from zlib import crc32 as _crc32

cdef enum State:
    FREE = 0      # the row is not in use
    LIVE = 1      # has received everything of its audiences up to the last flush
    BEHIND = 2    # lagging or replaying: needs `pending`, then the entries from `cursor` on
    CLOSING = 3   # sends `pending`, then ends
    ENDED = 4     # has sent its end; waits for the peer to close
    DEAD = 5      # waits for sweep()

cdef enum:
    POLL_EVENTS = 512        # maximum number of events that one call takes from epoll
    CLOCK_EVERY = 16         # number of sends between two readings of the clock
    COMBINED_MAX = 16        # maximum number of audiences in a combination; a stream in more due audiences catches up
    DISCARD_BYTES = 4096     # bytes per read of discarded input

cdef uint32_t MANY = 0xFFFFFFFF  # any combination of more than COMBINED_MAX audiences
cdef uint64_t NEVER = 0xFFFFFFFFFFFFFFFF  # no sequence

cdef struct Stream:
    # Identity: owned references. Many streams share a subscription or an address.
    PyObject *subscription
    PyObject *address
    # Progress: owned reference to the half-sent frame, or NULL; the next sequence; and the bytes of the frame sent.
    PyObject *pending
    uint64_t cursor
    uint32_t offset
    # State.
    int fd                   # -1 once it is released
    uint32_t generation
    uint32_t discarded       # bytes of discarded input
    float last_write_s       # time of the last write, since the start of the engine
    uint32_t combination     # its combination in the round `round`
    uint64_t round           # last round of combine() that saw the stream; never wraps
    uint8_t combined         # whether the combination has several audiences
    uint8_t state
    uint8_t reason
    uint8_t form             # number of its form, which selects its heartbeat
    # For compressed forms only.
    uint64_t clean_since     # all events from this sequence on were sent, and nothing between them; or NEVER
    uint32_t crc             # CRC-32 of the content sent so far, including the half-sent frame
    uint32_t size            # bytes of this content, modulo 2^32


# Totals of all engines in this process; `counters` returns them.
cdef Py_ssize_t _frames = 0  # references of streams to half-sent frames
cdef Py_ssize_t _streams = 0  # rows in use


def counters():
    """Return the numbers of chunks, half-sent frames and streams in this process, so that tests can detect leaks."""
    return {"chunks": _chunks, "frames": _frames, "streams": _streams}


cdef inline void _hold(Stream *stream, bytes frame) noexcept:
    global _frames
    Py_INCREF(frame)
    stream.pending = <PyObject *>frame
    _frames += 1


cdef inline void _let_go(Stream *stream) noexcept:
    global _frames
    if stream.pending != NULL:
        Py_DECREF(<object>stream.pending)
        stream.pending = NULL
        _frames -= 1


cdef inline void _interrupt(Stream *stream, uint64_t cursor) noexcept nogil:
    # Notes that something other than the next event is sent before `cursor`.
    if stream.clean_since != NEVER:
        stream.clean_since = cursor


cdef inline void _count(Stream *stream, Chunk chunk, Py_ssize_t first, Py_ssize_t stop) noexcept:
    # Counts the content of the rows [first, stop) of a chunk.
    cdef Py_ssize_t row
    if first == 0 and stop == chunk.count:
        stream.crc = _crc_multiply(chunk.check.factor, stream.crc) ^ chunk.check.crc
        stream.size += chunk.check.size
        return
    for row in range(first, stop):
        stream.crc = _crc_multiply(chunk.checks[row].factor, stream.crc) ^ chunk.checks[row].crc
        stream.size += chunk.checks[row].size


cdef class Engine:
    """Open streams and their sockets. Never parses, encodes or decides.

    Args:
        discard_bytes_max: maximum bytes that a client may send after its request; above it, its stream is closed.
    """

    cdef Stream *_streams     # owned, of `_room` rows; those from `_used` on were never used, nor written to
    cdef uint32_t _room
    cdef uint32_t _used
    cdef list _free           # rows before `_used` that are not in use
    cdef list _dead           # handles that wait for sweep()
    cdef list _lagging        # handles for the next lagging()
    cdef list _reasons        # close reasons; a stream holds the place of its reason
    cdef int _epoll_fd        # 0 until it is opened
    cdef Py_ssize_t _live     # number of live streams
    cdef uint64_t _round
    cdef uint32_t _discard_bytes_max
    cdef double _started_s
    cdef readonly Py_ssize_t open
    cdef readonly uint64_t deliveries
    cdef readonly uint64_t bytes
    cdef readonly uint64_t writes
    cdef readonly uint64_t short_writes
    cdef readonly uint64_t unshared

    def __cinit__(self, uint32_t discard_bytes_max):
        self._discard_bytes_max = discard_bytes_max
        self._free, self._dead, self._lagging, self._reasons = [], [], [], []
        self._round = 1
        self._started_s = _monotonic_s()
        cdef int epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if epoll_fd < 0:
            raise OSError(errno, "epoll_create1")
        self._epoll_fd = epoll_fd

    def __dealloc__(self):
        cdef uint32_t row
        global _streams
        _streams -= self.open
        for row in range(self._used):
            if self._streams[row].state != FREE:
                if self._streams[row].fd >= 0:
                    close(self._streams[row].fd)
                Py_XDECREF(self._streams[row].subscription)
                Py_XDECREF(self._streams[row].address)
                _let_go(&self._streams[row])
        free(self._streams)
        if self._epoll_fd > 0:
            close(self._epoll_fd)

    def fileno(self):
        """Return the epoll descriptor, which is readable when a stream has an event for `poll`."""
        return self._epoll_fd

    cdef Stream *_get(self, uint64_t handle) noexcept nogil:
        cdef uint32_t row = <uint32_t>handle
        if row >= self._used:
            return NULL
        if self._streams[row].generation != <uint32_t>(handle >> 32) or self._streams[row].state == FREE:
            return NULL
        return &self._streams[row]

    cdef inline void _become(self, Stream *stream, State state) noexcept nogil:
        self._live += (state == LIVE) - (stream.state == LIVE)
        stream.state = state

    cdef Stream *_need(self, uint64_t handle) except NULL:
        cdef Stream *stream = self._get(handle)
        if stream == NULL:
            raise KeyError(handle)
        return stream

    cdef Stream *_behind(self, uint64_t handle) except NULL:
        cdef Stream *stream = self._need(handle)
        if stream.state != BEHIND:
            raise RuntimeError("the stream is not behind")
        return stream

    def add(self, int fd, object subscription, object address, uint64_t cursor, bytes pending, double now_s,
            uint8_t form=0, bint joins=False):
        """Add a connected, non-blocking socket as a stream that is behind.

        Args:
            fd: the descriptor; the engine owns it after the return.
            subscription: an object of the hub, which several streams may share.
            address: the peer's address, which several streams may share.
            cursor: the first sequence that the stream needs.
            pending: bytes to send first (response head, priming).
            form: number of the form that the stream receives.
            joins: whether the stream may receive the output of a shared compressor; see `broadcast`.

        Returns:
            the stream's handle.

        Raises:
            OSError: epoll rejects the descriptor; the caller still owns it.
        """
        cdef uint32_t row, room
        cdef uint64_t handle
        cdef Stream *stream
        cdef epoll_event event
        row = self._free[-1] if self._free else self._used
        if row == self._room:
            room = self._room * 2 if self._room else 64
            stream = <Stream *>realloc(self._streams, room * sizeof(Stream))
            if stream == NULL:
                raise MemoryError
            self._streams = stream
            self._room = room
        stream = &self._streams[row]
        if row == self._used:
            memset(stream, 0, sizeof(Stream))
        handle = (<uint64_t>stream.generation << 32) | row
        event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
        event.data.u64 = handle
        if epoll_ctl(self._epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0:
            raise OSError(errno, "epoll_ctl")
        if row == self._used:
            self._used += 1
        else:
            self._free.pop()
        stream.fd = fd
        self._become(stream, BEHIND)
        stream.cursor = cursor
        stream.offset = 0
        stream.discarded = 0
        stream.form = form
        stream.clean_since = cursor if joins else NEVER
        stream.crc = stream.size = 0
        stream.round = 0
        stream.last_write_s = <float>(now_s - self._started_s)
        stream.subscription = <PyObject *>subscription
        stream.address = <PyObject *>address
        Py_INCREF(subscription)
        Py_INCREF(address)
        self._append(stream, pending)
        self.open += 1
        global _streams
        _streams += 1
        return handle

    def join(self, uint64_t handle, Members members):
        """Make the stream a member of an audience."""
        members.push(handle)

    def compact(self, Members members):
        """Remove the handles of streams that no longer exist."""
        cdef Py_ssize_t place, kept = 0
        for place in range(members.count):
            if self._get(members.handles[place]) != NULL:
                members.handles[kept] = members.handles[place]
                kept += 1
        members.count = kept

    def listed(self, Members members):
        """Return the handles of an audience, including stale ones."""
        return [members.handles[place] for place in range(members.count)]

    # Reading the state of a stream

    def is_behind(self, uint64_t handle):
        """Return whether the stream is behind (lagging or replaying)."""
        cdef Stream *stream = self._get(handle)
        return stream != NULL and stream.state == BEHIND

    def cursor(self, uint64_t handle):
        """Return the first sequence of which no byte is sent or pending."""
        return self._need(handle).cursor

    def subscription(self, uint64_t handle):
        """Return the subscription that the stream was added with."""
        return <object>self._need(handle).subscription

    def address(self, uint64_t handle):
        """Return the peer's address that the stream was added with."""
        return <object>self._need(handle).address

    def handles(self):
        """Return the handles of all live and behind streams."""
        cdef uint32_t row
        return [
            (<uint64_t>self._streams[row].generation << 32) | row
            for row in range(self._used)
            if self._streams[row].state == LIVE or self._streams[row].state == BEHIND
        ]

    def pack(self):
        """Describe the streams for another process, which adds them; nothing changes in this one.

        Returns:
            (handle, descriptor, cursor, unsent `pending` bytes, time of the last write, close reason) of each stream
            that is not dead, in the order of their rows. The reason is None unless the stream is closing or ended.
        """
        cdef uint32_t row
        cdef Stream *stream
        cdef list packed = []
        for row in range(self._used):
            stream = &self._streams[row]
            if stream.state == FREE or stream.state == DEAD:
                continue
            packed.append((
                (<uint64_t>stream.generation << 32) | row,
                stream.fd,
                stream.cursor,
                b"" if stream.pending == NULL else (<bytes>stream.pending)[stream.offset:],
                stream.last_write_s + self._started_s,
                self._reasons[stream.reason] if stream.state == CLOSING or stream.state == ENDED else None,
            ))
        return packed

    # Writing

    cdef ssize_t _send(self, Stream *stream, const char *data, Py_ssize_t size, double now_s) noexcept:
        # Sends `pending` and then `data` in one system call.
        # Returns the bytes of `data` sent; -1 if `pending` is not finished (0 <= offset), -2 if the socket failed.
        cdef iovec parts[2]
        cdef msghdr message
        cdef Py_ssize_t rest = 0
        cdef ssize_t sent
        if stream.pending != NULL:
            rest = len(<bytes>stream.pending) - stream.offset
        if rest + size == 0:
            return 0
        if rest == 0:
            sent = send(stream.fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        elif size == 0:
            sent = send(stream.fd, <const char *><bytes>stream.pending + stream.offset, rest,
                        MSG_DONTWAIT | MSG_NOSIGNAL)
        else:
            parts[0].iov_base = <void *>(<const char *><bytes>stream.pending + stream.offset)
            parts[0].iov_len = rest
            parts[1].iov_base = <void *>data
            parts[1].iov_len = size
            memset(&message, 0, sizeof(message))
            message.msg_iov = parts
            message.msg_iovlen = 2
            sent = sendmsg(stream.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0 and errno == EINTR:
            return self._send(stream, data, size, now_s)  # Python does the same for the counterpart (PEP 475).
        self.writes += 1
        if sent < 0:
            if errno != EAGAIN:
                return -2
            sent = 0
        elif sent > 0:
            stream.last_write_s = <float>(now_s - self._started_s)
        self.bytes += sent
        if sent < rest + size:
            self.short_writes += 1
        if sent < rest:
            stream.offset += sent
            return -1
        _let_go(stream)
        stream.offset = 0
        return sent - rest

    cdef int _write(self, Stream *stream, Chunk chunk, double now_s) except -2:
        # Returns 1 if the whole chunk was sent, 0 if not, -1 if the stream is dead.
        cdef Py_ssize_t first = 0, last, start = 0, size = 0
        cdef ssize_t taken
        cdef const char *data = NULL
        if chunk is not None:
            first = chunk.row_of_cursor(stream.cursor)
            start = chunk.ends[first - 1] if first else 0
            size = chunk.ends[chunk.count - 1] - start
            data = <const char *>chunk.data + start
        taken = self._send(stream, data, size, now_s)
        if taken == -2:
            self._die(stream, self._reason(_reason_of(errno)))
            return -1
        if taken == -1:
            return 0
        if chunk is None:
            return 1
        if taken == size:
            self.deliveries += chunk.events - first
            if chunk.checks != NULL:
                _count(stream, chunk, first, chunk.count)
            if chunk.cursor > stream.cursor:
                stream.cursor = chunk.cursor
            return 1
        taken += start
        last = chunk.row_of_offset(taken)
        start = chunk.ends[last - 1] if last else 0
        if taken == start:
            stream.cursor = chunk.sequences[last]
        else:
            frame = <bytes>chunk.frames[last]
            _hold(stream, frame)
            stream.offset = taken - start
            last += 1
            stream.cursor = chunk.cursor if last == chunk.count else chunk.sequences[last - 1] + 1
        if last > first:
            self.deliveries += chunk.events - chunk.count + last - first
            if chunk.checks != NULL:
                _count(stream, chunk, first, last)
        return 0

    def write(self, uint64_t handle, Chunk chunk, double now_s):
        """Send `pending`, then the chunk from the cursor on, to a stream that is behind, in one system call.

        Args:
            chunk: entries that follow the cursor; None to write only the `pending` bytes.

        Returns:
            True if everything was sent; False if the stream must wait until it is writable again, or is dead.
        """
        return self._write(self._behind(handle), chunk, now_s) == 1

    def write_each(self, list handles, Chunk chunk not None, double now_s):
        """Call `write` with one chunk for each of some streams; omit streams that are not behind any more.

        Returns:
            the handles of the streams that received everything, and those of the streams that must wait.
        """
        cdef uint64_t handle
        cdef Stream *stream
        cdef list whole = [], short = []
        cdef int result
        for item in handles:
            handle = item
            stream = self._get(handle)
            if stream == NULL or stream.state != BEHIND:
                continue
            result = self._write(stream, chunk, now_s)
            if result == 1:
                whole.append(item)
            elif result == 0:
                short.append(item)
        return whole, short

    def live(self, uint64_t handle, uint64_t cursor):
        """Make a stream live: flushes send it the entries from the later of `cursor` and its own cursor on.

        It must have no `pending` bytes.
        """
        cdef Stream *stream = self._behind(handle)
        if stream.pending != NULL:
            raise RuntimeError("only a stream that has all of its bytes can be live")
        self._become(stream, LIVE)
        stream.cursor = max(stream.cursor, cursor)

    def fall_behind(self, uint64_t handle, uint64_t cursor):
        """Put a live stream behind, with the later of `cursor` and its own cursor.

        Returns:
            whether it was live.
        """
        cdef Stream *stream = self._get(handle)
        if stream == NULL or stream.state != LIVE:
            return False
        self._become(stream, BEHIND)
        stream.cursor = max(stream.cursor, cursor)
        return True

    def skip(self, uint64_t handle, uint64_t cursor, bytes notice):
        """Move the cursor of a stream that is behind; send `notice` after the half-sent frame."""
        cdef Stream *stream = self._behind(handle)
        stream.cursor = cursor
        _interrupt(stream, cursor)
        self._append(stream, notice)

    def count_content(self, uint64_t handle, bytes content):
        """Count the content of a notice that `add`, `skip` or `close` sends in a compressed form."""
        cdef Stream *stream = self._need(handle)
        cdef uint32_t size = <uint32_t>len(content)
        stream.crc = _crc_multiply(_crc_factor(size), stream.crc) ^ <uint32_t>_crc32(content)
        stream.size += size

    def content(self, uint64_t handle):
        """Return the CRC-32 of the content that a stream of a compressed form received, and its size modulo 2^32."""
        cdef Stream *stream = self._need(handle)
        return stream.crc, stream.size

    def continue_content(self, uint64_t handle, uint32_t crc, uint32_t size):
        """Continue the count of a stream's content from the values that `content` returned in another process."""
        cdef Stream *stream = self._need(handle)
        stream.crc, stream.size = crc, size

    cdef int _append(self, Stream *stream, bytes more) except -1:
        cdef bytes pending = more
        if stream.pending != NULL:
            pending = (<bytes>stream.pending)[stream.offset:] + more
            _let_go(stream)
        if pending:
            _hold(stream, pending)
        stream.offset = 0
        return 0

    def broadcast(self, Members members, Py_ssize_t start, Chunk chunk, bint combined, double now_s, double slice_s,
                  Chunk shared=None, uint64_t key_cursor=0):
        """Send a flush's chunk to the live streams of an audience, to each from its cursor on.

        Args:
            members: the audience.
            start: place in `members` at which to begin.
            combined: whether `combine` made these members. Other broadcasts of the round omit their streams.
            slice_s: maximum duration, after which the call returns.
            shared: the same entries as one frame from a compressor that the members share; None without a compressor.
            key_cursor: the compressor refers to content from this sequence on. Only streams that have received exactly
                this content can read `shared`. Other streams receive `chunk`; `unshared` counts those that could join.

        Returns:
            the place at which to continue; `len(members)` when all members are done.
        """
        cdef Py_ssize_t place, sends = 0
        cdef double stop_s = _monotonic_s() + slice_s
        cdef uint64_t handle
        cdef Stream *stream
        cdef int result
        if self._live == 0:
            return members.count  # In overload, the walk would take 3 % of the CPU time.
        for place in range(start, members.count):
            handle = members.handles[place]
            stream = self._get(handle)
            if stream == NULL or stream.state != LIVE:
                continue
            if not combined and stream.round == self._round and stream.combined:
                continue
            if stream.cursor >= chunk.cursor or chunk.sequences[chunk.count - 1] < stream.cursor:
                continue
            if shared is not None and stream.clean_since <= key_cursor and stream.cursor <= chunk.sequences[0]:
                result = self._write(stream, shared, now_s)
            else:
                if shared is not None and stream.clean_since != NEVER:
                    self.unshared += 1
                result = self._write(stream, chunk, now_s)
            if result == 0:
                self._become(stream, BEHIND)
                self._lagging.append(handle)
            sends += 1
            if sends % CLOCK_EVERY == 0 and _monotonic_s() >= stop_s:
                return place + 1
        return members.count

    def combine(self, list audiences):
        """Begin a flush of several due audiences: find the streams that are in more than one of them.

        Args:
            audiences: the members of each due audience.

        Returns:
            (places in `audiences`, members) for each combination of audiences that a stream has, and ((), members) for
            the streams in more than `COMBINED_MAX` audiences. Until the next call, only a `combined` broadcast sends
            to these streams.
        """
        cdef uint64_t number, count = len(audiences), key, seen_key = 0
        cdef uint32_t seen_next = 0
        cdef Py_ssize_t place
        cdef Members members
        cdef Stream *stream
        cdef list sets = [()]
        cdef dict nexts = {}
        cdef list groups
        self._round += 1
        for number in range(count):
            members = audiences[number]
            seen_next = 0
            for place in range(members.count):
                stream = self._get(members.handles[place])
                if stream == NULL or stream.state != LIVE:
                    continue
                if stream.round != self._round:
                    stream.round = self._round
                    stream.combination = 0
                    stream.combined = False
                if stream.combination == MANY:
                    continue
                key = stream.combination * count + number
                if seen_next == 0 or key != seen_key:
                    found = nexts.get(key)
                    if found is None:
                        numbers = sets[stream.combination] + (number,)
                        found = MANY if len(numbers) > COMBINED_MAX else <uint32_t>len(sets)
                        nexts[key] = found
                        if found != MANY:
                            sets.append(numbers)
                    seen_key, seen_next = key, found
                stream.combination = seen_next
        many = Members()
        groups = [None if len(numbers) < 2 else Members() for numbers in sets]
        for number in range(count):
            members = audiences[number]
            for place in range(members.count):
                stream = self._get(members.handles[place])
                if stream == NULL or stream.round != self._round or stream.combined:
                    continue
                group = many if stream.combination == MANY else groups[stream.combination]
                if group is not None:
                    stream.combined = True
                    (<Members>group).push(members.handles[place])
        combined = [(numbers, group) for numbers, group in zip(sets, groups) if group]
        return [*combined, ((), many)] if many else combined

    def heartbeat(self, list frames, Py_ssize_t start, double idle_s, double now_s, double slice_s,
                  list contents=None, uint64_t cursor=0):
        """Send a heartbeat to each live stream whose last write is at least `idle_s` seconds ago.

        Args:
            frames: the heartbeat of each form.
            contents: the content of the heartbeat of each compressed form; empty for other forms.
            cursor: live streams have received everything before this sequence.

        Returns:
            the `start` of the next call; 0 when all streams are done.
        """
        cdef uint32_t row
        cdef int count = 0
        cdef double stop_s = _monotonic_s() + slice_s
        cdef float idle_since_s = <float>(now_s - self._started_s - idle_s)
        cdef Stream *stream
        cdef ssize_t taken
        cdef bytes frame
        for row in range(start, self._used):
            stream = &self._streams[row]
            if stream.state != LIVE or stream.last_write_s > idle_since_s:
                continue
            frame = frames[stream.form]
            if contents is not None and contents[stream.form]:
                _interrupt(stream, max(stream.cursor, cursor))
                self.count_content((<uint64_t>stream.generation << 32) | row, contents[stream.form])
            taken = self._send(stream, <const char *>frame, len(frame), now_s)
            if taken == -2:
                self._die(stream, self._reason(_reason_of(errno)))
            elif taken < len(frame):
                self._append(stream, frame[taken:])
                self._become(stream, BEHIND)
                self._lagging.append((<uint64_t>stream.generation << 32) | row)
            count += 1
            if count % CLOCK_EVERY == 0 and _monotonic_s() >= stop_s:
                return row + 1 if row + 1 < self._used else 0
        return 0

    def lagging(self):
        """Return the handles of the streams that fell behind in a broadcast or heartbeat since the last call."""
        found, self._lagging = self._lagging, []
        return found

    # Polling and closing

    cdef int _discard(self, Stream *stream) noexcept nogil:
        # Reads and discards input from the client. Returns 0; -1 if the peer disconnected, -2 if it sent too much, -3
        # if the socket failed (errno).
        cdef char buffer[DISCARD_BYTES]
        cdef ssize_t count
        while True:
            count = recv(stream.fd, buffer, DISCARD_BYTES, MSG_DONTWAIT)
            if count == 0:
                return -1
            if count < 0 and errno == EINTR:
                continue
            if count < 0:
                return 0 if errno == EAGAIN else -3
            stream.discarded += count
            if stream.discarded > self._discard_bytes_max:
                return -2

    cdef int _error(self, Stream *stream) noexcept nogil:
        # Returns the errno with which the socket failed; 0 if it did not fail.
        cdef int number = 0
        cdef socklen_t size = sizeof(number)
        if getsockopt(stream.fd, SOL_SOCKET, SO_ERROR, &number, &size) < 0:
            return errno
        return number

    def poll(self):
        """Process events of epoll: mark streams of disconnected peers as dead, and discard input from clients.

        Returns:
            the handles of behind streams that became writable, and whether more events may be waiting.
        """
        cdef epoll_event events[POLL_EVENTS]
        cdef int place, count, result
        cdef Stream *stream
        cdef list writable = []
        count = epoll_wait(self._epoll_fd, events, POLL_EVENTS, 0)
        if count < 0:
            if errno == EINTR:
                return writable, True
            raise OSError(errno, "epoll_wait")
        for place in range(count):
            stream = self._get(events[place].data.u64)
            if stream == NULL or stream.state == DEAD:
                continue
            if events[place].events & (EPOLLERR | EPOLLHUP):
                self._die(stream, self._reason(_reason_of(self._error(stream))))
                continue
            if events[place].events & (EPOLLIN | EPOLLRDHUP):
                result = self._discard(stream)
                if result < 0:
                    reason = "input" if result == -2 else _reason_of(errno if result == -3 else 0)
                    self._die(stream, self._reason(reason))
                    continue
            if events[place].events & EPOLLOUT:
                if stream.state == BEHIND:
                    writable.append(events[place].data.u64)
                elif stream.state == CLOSING:
                    self._finish(stream)
        return writable, count == POLL_EVENTS

    cdef uint8_t _reason(self, str reason) except? 255:
        if reason not in self._reasons:
            self._reasons.append(reason)
        return self._reasons.index(reason)

    cdef int _die(self, Stream *stream, uint8_t reason) except -1:
        if stream.state != DEAD:
            if stream.state != CLOSING and stream.state != ENDED:
                stream.reason = reason
            self._become(stream, DEAD)
            self._dead.append((<uint64_t>stream.generation << 32) | <uint32_t>(stream - self._streams))
        return 0

    cdef int _finish(self, Stream *stream) except -1:
        cdef ssize_t taken = self._send(stream, NULL, 0, stream.last_write_s + self._started_s)
        if taken == -1:
            return 0
        if taken == -2 or shutdown(stream.fd, SHUT_WR) < 0:
            self._die(stream, stream.reason)
        else:
            self._become(stream, ENDED)
        return 0

    def close(self, uint64_t handle, reason, bytes last=b""):
        """Close a stream between frames: send the rest of the half-sent frame, and then `last`, first.

        Then shut down only the sending side, and discard input until the peer closes. The kernel answers input at a
        closed socket with a reset, which would discard bytes on their way to the peer. If the peer does not read, or
        does not close, the stream stays until `abort`. Only the first reason counts. It may be a subclass of str;
        `sweep` returns it as a str.
        """
        cdef Stream *stream = self._need(handle)
        if stream.state == CLOSING or stream.state == ENDED or stream.state == DEAD:
            return
        self._append(stream, last)
        self._become(stream, CLOSING)
        stream.reason = self._reason(str(reason))
        self._finish(stream)

    def abort(self, uint64_t handle, reason):
        """Close a stream without sending the rest of its half-sent frame; `reason` as in `close`."""
        self._die(self._need(handle), self._reason(str(reason)))

    def release(self, uint64_t handle, reason):
        """End a live or behind stream and give its descriptor to the caller, who continues the connection.

        Returns:
            the descriptor, the unsent `pending` bytes, and whether input from the client was discarded.
        """
        cdef Stream *stream = self._need(handle)
        cdef int fd = stream.fd
        if stream.state != LIVE and stream.state != BEHIND:
            raise RuntimeError("the stream is closing")
        epoll_ctl(self._epoll_fd, EPOLL_CTL_DEL, fd, NULL)
        stream.fd = -1
        self._die(stream, self._reason(str(reason)))
        unsent = b"" if stream.pending == NULL else (<bytes>stream.pending)[stream.offset:]
        return fd, unsent, stream.discarded > 0

    def sweep(self):
        """Close the descriptors of dead streams and free their rows.

        Returns:
            (handle, subscription, address, cursor, reason) of each dead stream.
        """
        cdef Stream *stream
        cdef uint64_t handle
        cdef list dead = self._dead, swept = []
        global _streams
        self._dead = []
        for handle in dead:
            stream = self._get(handle)
            if stream.fd >= 0:
                self._discard(stream)  # Unread input would make the kernel reset the connection and lose sent bytes.
                epoll_ctl(self._epoll_fd, EPOLL_CTL_DEL, stream.fd, NULL)  # Another process may still use the socket.
                close(stream.fd)
            swept.append((handle, <object>stream.subscription, <object>stream.address, stream.cursor,
                          self._reasons[stream.reason]))
            Py_DECREF(<object>stream.subscription)
            Py_DECREF(<object>stream.address)
            _let_go(stream)
            stream.subscription = stream.address = NULL
            stream.state = FREE
            stream.generation += 1
            self._free.append(<uint32_t>handle)
            self.open -= 1
            _streams -= 1
        return swept
