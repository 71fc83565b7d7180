# Accepted connections, and the parts of a request head that the opening of a stream needs.
#
# Theory of operation. Clients that reconnect send nearly identical heads. cut_head() removes the fields that differ
# between clients, so the rest of the head, its shape, is the key of a cache (relay.front.openings). The removed values
# hold only visible characters, spaces and tabs, and no name occurs twice, so every parser reads them in the same way.

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint32_t
from libc.string cimport memchr, memcmp, memcpy, strlen
from os import strerror as _strerror

cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        unsigned short sa_family
    int AF_INET, AF_INET6
    int SOCK_NONBLOCK, SOCK_CLOEXEC
    int accept4(int fd, sockaddr *address, socklen_t *size, int flags)

cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        pass
    struct in6_addr:
        pass
    struct sockaddr_in:
        in_addr sin_addr
    struct sockaddr_in6:
        in6_addr sin6_addr

cdef extern from "<arpa/inet.h>" nogil:
    const char *inet_ntop(int family, const void *source, char *text, socklen_t size)

cdef extern from "<strings.h>" nogil:
    int strncasecmp(const char *one, const char *other, size_t count)

cdef enum:
    CUT_HEAD_BYTES_MAX = 2048  # longest head that cut_head() reads
    ADDRESS_BYTES = 64         # longest text of an address
    CUT_FIELDS = 10            # number of fields that cut_head() removes
    KEPT_FIELDS = 3            # number of fields whose values it returns

# The fields whose values differ between clients. No other field is removed from a shape. The first KEPT_FIELDS have a
# meaning for a stream; the others have none, except that a cookie may contain a token.
cdef const char *_CUT[CUT_FIELDS]
_CUT[:] = [
    "last-event-id", "authorization", "x-forwarded-for",
    "cookie", "user-agent", "referer", "x-real-ip", "x-request-id", "traceparent", "tracestate",
]


def accept(int listener, Py_ssize_t bytes_max):
    """Accept one waiting connection.

    Args:
        listener: the descriptor of a non-blocking listener of IPv4 or IPv6.
        bytes_max: maximum number of bytes to read from the connection, at most 2,048; 0 to read none.

    Returns:
        (descriptor, the peer's address, the input that had already arrived). The socket does not block. None if no
        connection is waiting.

    Raises:
        OSError: the kernel cannot accept a connection.
    """
    cdef char place[128]
    cdef char text[ADDRESS_BYTES]
    cdef char input[CUT_HEAD_BYTES_MAX]
    cdef socklen_t size = sizeof(place)
    cdef ssize_t arrived = 0
    cdef const void *address
    cdef int family
    cdef int fd = accept4(listener, <sockaddr *>place, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
    if fd < 0:
        if errno == EAGAIN or errno == EINTR:
            return None
        raise OSError(errno, _strerror(errno))
    family = (<sockaddr *>place).sa_family
    if family == AF_INET:
        address = &(<sockaddr_in *>place).sin_addr
    else:
        address = &(<sockaddr_in6 *>place).sin6_addr
    text[0] = 0
    if family == AF_INET or family == AF_INET6:
        inet_ntop(family, address, text, ADDRESS_BYTES)
    if bytes_max > 0:
        arrived = recv(fd, input, min(bytes_max, <Py_ssize_t>CUT_HEAD_BYTES_MAX), MSG_DONTWAIT)
    return fd, text.decode("ascii"), input[:max(arrived, 0)]


def cut_head(bytes input):
    """Remove the fields that differ between clients from the head of a GET request.

    Returns:
        (shape, Last-Event-ID, Authorization, X-Forwarded-For). The shape is the head without these fields and without
        some others that have no meaning for a stream. A value without white space at its ends is b"" if the field is
        missing. None unless the input is exactly one head, of at most 2,048 bytes, whose removed fields are simple.
    """
    cdef char shape[CUT_HEAD_BYTES_MAX]
    cdef const char *line = PyBytes_AS_STRING(input)
    cdef const char *stop = line + PyBytes_GET_SIZE(input)
    cdef const char *end
    cdef const char *colon
    cdef char *out = shape
    cdef uint32_t seen = 0
    cdef int number
    cdef bint first = True
    cdef list values = [b"", b"", b""]
    if stop - line > CUT_HEAD_BYTES_MAX or stop - line < 4 or memcmp(line, b"GET ", 4) != 0:
        return None
    while True:
        end = <const char *>memchr(line, c"\r", stop - line)
        if end == NULL or end + 1 == stop or end[1] != c"\n" or memchr(line, c"\n", end - line) != NULL:
            return None
        if end == line:  # the empty line
            if end + 2 != stop:
                return None
            memcpy(out, line, 2)
            return PyBytes_FromStringAndSize(shape, out + 2 - shape), values[0], values[1], values[2]
        number = -1
        if not first:
            colon = <const char *>memchr(line, c":", end - line)
            if colon == NULL:
                return None
            number = _cut_number(line, colon - line)
        first = False
        if number < 0:
            memcpy(out, line, end + 2 - line)
            out += end + 2 - line
        else:
            if seen & (<uint32_t>1 << number) or not _is_simple(colon + 1, end):
                return None
            seen |= <uint32_t>1 << number
            if number < KEPT_FIELDS:
                values[number] = _stripped(colon + 1, end)
        line = end + 2


cdef int _cut_number(const char *name, Py_ssize_t size) noexcept nogil:
    # Returns the place of a name in _CUT; -1 if it is not one of them.
    cdef int number
    for number in range(CUT_FIELDS):
        if strlen(_CUT[number]) == <size_t>size and strncasecmp(_CUT[number], name, size) == 0:
            return number
    return -1


cdef bint _is_simple(const char *start, const char *stop) noexcept nogil:
    cdef bint simple = True
    while start < stop:
        simple &= c" " <= start[0] <= c"~" or start[0] == c"\t"
        start += 1
    return simple


cdef bytes _stripped(const char *start, const char *stop):
    while start < stop and (start[0] == c" " or start[0] == c"\t"):
        start += 1
    while start < stop and (stop[-1] == c" " or stop[-1] == c"\t"):
        stop -= 1
    return PyBytes_FromStringAndSize(start, stop - start)
