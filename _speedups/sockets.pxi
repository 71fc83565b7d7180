# The engine's interface to the kernel: non-blocking send, epoll, the clock, and the close reason for each errno.

from libc.errno cimport ECONNRESET, EPIPE, ETIMEDOUT
from libc.stdint cimport uint32_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    ctypedef unsigned int socklen_t
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    int SOL_SOCKET, SO_ERROR, SHUT_WR
    int shutdown(int fd, int how)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *size)
    ssize_t send(int fd, const void *buffer, size_t size, int flags)
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL
    uint32_t EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR, EPOLLET
    int epoll_create1(int flags)
    int epoll_ctl(int epoll_fd, int operation, int fd, epoll_event *event)
    int epoll_wait(int epoll_fd, epoll_event *events, int count, int timeout_ms)


cdef double _monotonic_s() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


cdef str _reason_of(int number):
    # Returns the close reason of a socket that failed with this errno; 0 means that the peer disconnected.
    if number == ETIMEDOUT:
        return "timeout"
    return "client" if number == 0 or number == EPIPE or number == ECONNRESET else "error"
