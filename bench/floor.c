/* floor: the bare C loop that relay is measured against.
 *
 * One thread, one epoll, one ring. The NDJSON lines of a feeder become SSE frames in the ring. Once a turn, one send()
 * writes all pending frames to each live client. After a short send, a client keeps a position in the ring, waits for
 * EPOLLOUT and catches up in pieces. The floor delivers the same bytes as relay and promises nothing else: no topics,
 * no resume, no policies, no checks. It is as fast as its author could make it, because a slow floor would flatter relay.
 *
 * Owns a Unix socket for feeders and a TCP listener for clients. It answers `GET /readyz`; any other request opens a
 * stream. Prints one line when it listens. Ends on a signal, or after --seconds.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    EVENTS_A_TURN = 1024,       /* descriptors taken from one epoll_wait */
    ACCEPTS_A_TURN = 256,       /* so that accepting never delays the flush for long */
    FEED_BYTES = 64 * 1024,     /* read from one feeder a turn */
    LINE_BYTES_MAX = 1 << 20,   /* longest line of a feeder */
    CATCH_UP_BYTES = 64 * 1024, /* largest send to a client that lags */
    DISCARD_BYTES = 64 * 1024,
    HEAD_BYTES_MAX = 16 * 1024, /* longest request head */
};

typedef enum { FREE, LISTENER, FEEDER_LISTENER, FEEDER, HEAD, LIVE, LAGGING } kind_t;

/* The state of a descriptor; the table is indexed by descriptor. */
typedef struct {
    uint64_t position; /* LAGGING: next byte of the ring to send. HEAD: bytes of the request so far. */
    uint32_t slot;     /* LIVE: its place in `live`. FEEDER: its place in `feeders`. */
    uint8_t kind;
    uint8_t matched;   /* HEAD: how much of CRLFCRLF has been seen */
    uint8_t watched;   /* EPOLLOUT is requested and stays so: edge-triggered, it costs nothing while sends succeed */
} descriptor_t;

/* A feeder's unfinished line. */
typedef struct {
    char *bytes;
    size_t length;
} feeder_t;

static int epoll_fd;
static descriptor_t *descriptors;
static size_t descriptors_max;
static int *live; /* the live clients, all at position `flushed` */
static size_t live_count;
static feeder_t feeders[64];

static char *ring; /* mapped twice in a row, so that a frame that wraps is still contiguous */
static size_t ring_bytes = 64u << 20;
static uint64_t head;    /* position after the last frame */
static uint64_t flushed; /* position up to which live clients have received everything */
static uint64_t sequence;

static const char *epoch = "00000000";
static char response[512];
static size_t response_length;
static char discarded[DISCARD_BYTES];

static void die(const char *what)
{
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(2);
}

static void ring_open(void)
{
    int fd = memfd_create("ring", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)ring_bytes) < 0)
        die("ring");
    ring = mmap(NULL, 2 * ring_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ring == MAP_FAILED)
        die("ring");
    for (int half = 0; half < 2; half++)
        if (mmap(ring + (size_t)half * ring_bytes, ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
                 0) == MAP_FAILED)
            die("ring");
    close(fd);
}

static inline char *ring_at(uint64_t position)
{
    return ring + (position & (ring_bytes - 1));
}

static size_t decimal(char *out, uint64_t value)
{
    char digits[20];
    size_t n = 0;
    do
        digits[n++] = (char)('0' + value % 10);
    while (value /= 10);
    for (size_t i = 0; i < n; i++)
        out[i] = digits[n - 1 - i];
    return n;
}

/* Append the frame of one line, {"data":…} as the publisher writes it, in a chunk of an HTTP body; the raw text of the
 * value becomes the data. */
static void append(const char *line, size_t length)
{
    static const char opening[] = "{\"data\":";
    static size_t epoch_length;
    if (length <= sizeof opening || memcmp(line, opening, sizeof opening - 1) != 0)
        return;
    if (!epoch_length)
        epoch_length = strlen(epoch);
    char number[20];
    size_t digits = decimal(number, ++sequence);
    size_t data_length = length - (sizeof opening - 1) - 1;
    char *out = ring_at(head), *start = out;
    out += sprintf(out, "%zx\r\n", 4 + epoch_length + 1 + digits + 7 + data_length + 2);
    memcpy(out, "id: ", 4);
    memcpy(out + 4, epoch, epoch_length);
    out += 4 + epoch_length;
    *out++ = '-';
    memcpy(out, number, digits);
    out += digits;
    memcpy(out, "\ndata: ", 7);
    out += 7;
    memcpy(out, line + sizeof opening - 1, data_length);
    out += data_length;
    memcpy(out, "\n\n\r\n", 4);
    out += 4;
    head += (uint64_t)(out - start);
}

static void watch(int fd, uint32_t events, int operation)
{
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll_fd, operation, fd, &event) < 0)
        die("epoll_ctl");
}

static void live_add(int fd)
{
    descriptors[fd].kind = LIVE;
    descriptors[fd].slot = (uint32_t)live_count;
    live[live_count++] = fd;
}

static void live_remove(int fd)
{
    int last = live[--live_count];
    live[descriptors[fd].slot] = last;
    descriptors[last].slot = descriptors[fd].slot;
}

static void client_close(int fd)
{
    if (descriptors[fd].kind == LIVE)
        live_remove(fd);
    descriptors[fd].kind = FREE;
    close(fd);
}

/* Send a lagging client its missing bytes, up to `flushed`; at the head it becomes live again. */
static void catch_up(int fd)
{
    descriptor_t *client = &descriptors[fd];
    while (client->position < flushed) {
        if (head - client->position > ring_bytes) {
            /* Lapped: the rest of a half-sent chunk is gone. The loads are too short for this. */
            client_close(fd);
            return;
        }
        size_t due = flushed - client->position;
        if (due > CATCH_UP_BYTES)
            due = CATCH_UP_BYTES;
        ssize_t sent = send(fd, ring_at(client->position), due, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN)
                client_close(fd);
            return;
        }
        client->position += (uint64_t)sent;
        if ((size_t)sent < due)
            return;
    }
    live_add(fd);
}

static void lag(int fd, uint64_t position)
{
    descriptor_t *client = &descriptors[fd];
    live_remove(fd);
    client->kind = LAGGING;
    client->position = position;
    if (!client->watched) {
        /* epoll reports at once if the socket is already writable again, so no edge is lost. */
        client->watched = 1;
        watch(fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, EPOLL_CTL_MOD);
    }
}

/* Send all pending bytes to every live client, with one send each. */
static void flush(void)
{
    const char *due = ring_at(flushed);
    const size_t length = head - flushed;
    const uint64_t from = flushed;
    flushed = head;
    /* Backwards: a client that already has its bytes takes the slot of a client that leaves. */
    for (size_t i = live_count; i-- > 0;) {
        int fd = live[i];
        ssize_t sent = send(fd, due, length, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent == (ssize_t)length)
            continue;
        if (sent < 0 && errno != EAGAIN)
            client_close(fd);
        else
            lag(fd, from + (uint64_t)(sent < 0 ? 0 : sent));
    }
}

static void accept_clients(int listener)
{
    for (int i = 0; i < ACCEPTS_A_TURN; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0)
            return;
        if ((size_t)fd >= descriptors_max) {
            close(fd);
            continue;
        }
        descriptors[fd] = (descriptor_t){.kind = HEAD};
        watch(fd, EPOLLIN | EPOLLRDHUP | EPOLLET, EPOLL_CTL_ADD);
    }
}

static void answer(int fd, const char *request, ssize_t length)
{
    static const char probe[] = "GET /readyz ";
    static const char ready[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    if (length >= (ssize_t)sizeof probe && memcmp(request, probe, sizeof probe - 1) == 0) {
        (void)!send(fd, ready, sizeof ready - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
        client_close(fd);
        return;
    }
    if (send(fd, response, response_length, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)response_length) {
        client_close(fd);
        return;
    }
    live_add(fd); /* it starts at `flushed`, like all other live clients */
}

/* Read the request until CRLFCRLF and discard later bytes. epoll is edge-triggered, so read until no bytes are left. */
static void read_client(int fd)
{
    static const char terminator[] = "\r\n\r\n";
    descriptor_t *client = &descriptors[fd];
    for (;;) {
        ssize_t length = recv(fd, discarded, sizeof discarded, MSG_DONTWAIT);
        if (length <= 0) {
            if (length == 0 || errno != EAGAIN)
                client_close(fd);
            return;
        }
        if (client->kind == HEAD) {
            client->position += (uint64_t)length;
            for (ssize_t i = 0; i < length && client->matched < 4; i++)
                client->matched = discarded[i] == terminator[client->matched] ? (uint8_t)(client->matched + 1)
                                                                              : discarded[i] == '\r';
            if (client->matched == 4)
                answer(fd, discarded, length);
            else if (client->position > HEAD_BYTES_MAX)
                client_close(fd);
            if (client->kind == FREE)
                return;
        }
        if ((size_t)length < sizeof discarded)
            return;
    }
}

static void accept_feeder(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    uint32_t slot = 0;
    while (slot < sizeof feeders / sizeof *feeders && feeders[slot].bytes)
        slot++;
    if ((size_t)fd >= descriptors_max || slot == sizeof feeders / sizeof *feeders ||
        !(feeders[slot].bytes = malloc(LINE_BYTES_MAX + FEED_BYTES))) {
        close(fd);
        return;
    }
    feeders[slot].length = 0;
    descriptors[fd] = (descriptor_t){.kind = FEEDER, .slot = slot};
    watch(fd, EPOLLIN, EPOLL_CTL_ADD);
}

static void read_feeder(int fd)
{
    feeder_t *feeder = &feeders[descriptors[fd].slot];
    ssize_t length = recv(fd, feeder->bytes + feeder->length, FEED_BYTES, MSG_DONTWAIT);
    if (length < 0 && errno == EAGAIN)
        return;
    if (length <= 0 || feeder->length + (size_t)length > LINE_BYTES_MAX) {
        free(feeder->bytes);
        feeder->bytes = NULL;
        descriptors[fd].kind = FREE;
        close(fd);
        return;
    }
    char *line = feeder->bytes, *end = feeder->bytes + feeder->length + length, *newline;
    char *from = feeder->bytes + feeder->length;
    while ((newline = memchr(from, '\n', (size_t)(end - from)))) {
        append(line, (size_t)(newline - line));
        line = from = newline + 1;
    }
    feeder->length = (size_t)(end - line);
    if (feeder->length && line != feeder->bytes)
        memmove(feeder->bytes, line, feeder->length);
}

static void handle(int fd, uint32_t events)
{
    switch (descriptors[fd].kind) {
    case LISTENER:
        accept_clients(fd);
        break;
    case FEEDER_LISTENER:
        accept_feeder(fd);
        break;
    case FEEDER:
        read_feeder(fd);
        break;
    case FREE:
        break;
    default:
        if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
            read_client(fd);
        if (events & EPOLLOUT && descriptors[fd].kind == LAGGING)
            catch_up(fd);
    }
}

static void listen_on(int fd, kind_t kind)
{
    if (listen(fd, 4096) < 0)
        die("listen");
    descriptors[fd].kind = (uint8_t)kind;
    watch(fd, EPOLLIN, EPOLL_CTL_ADD);
}

static void listen_tcp(const char *host, int port, int buffer, int notsent_lowat)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || inet_pton(AF_INET, host, &address.sin_addr) != 1)
        die("address");
    /* The accepted sockets inherit all of these options. */
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (buffer) {
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
    }
    if (notsent_lowat)
        setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &notsent_lowat, sizeof notsent_lowat);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("bind");
    listen_on(fd, LISTENER);
}

static void listen_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || strlen(path) >= sizeof address.sun_path)
        die(path);
    strcpy(address.sun_path, path);
    unlink(path);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die(path);
    listen_on(fd, FEEDER_LISTENER);
}

static void prepare(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    descriptors_max = limit.rlim_cur > (1 << 20) ? 1 << 20 : limit.rlim_cur;
    descriptors = calloc(descriptors_max, sizeof *descriptors);
    live = calloc(descriptors_max, sizeof *live);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (!descriptors || !live || epoll_fd < 0)
        die("start");
    ring_open();
    response_length = (size_t)snprintf(response, sizeof response,
                                       "HTTP/1.1 200 OK\r\n"
                                       "Content-Type: text/event-stream\r\n"
                                       "Cache-Control: no-cache, no-transform\r\n"
                                       "Connection: close\r\n"
                                       "Transfer-Encoding: chunked\r\n"
                                       "X-Accel-Buffering: no\r\n"
                                       "\r\n"
                                       "%zx\r\n: floor\nretry: 3000\nid: %s-0\n\n\r\n",
                                       strlen(": floor\nretry: 3000\nid: -0\n\n") + strlen(epoch), epoch);
}

static void run(void)
{
    struct epoll_event events[EVENTS_A_TURN];
    for (;;) {
        int count = epoll_wait(epoll_fd, events, EVENTS_A_TURN, -1);
        for (int i = 0; i < count; i++)
            handle(events[i].data.fd, events[i].events);
        if (head != flushed)
            flush();
    }
}

static void usage(void)
{
    fprintf(stderr, "usage: floor --port N --unix PATH [--host ADDRESS] [--history-bytes N] [--client-buffer N]\n"
                    "             [--notsent-lowat N] [--epoch TEXT] [--seconds N]\n");
    exit(2);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"host", required_argument, NULL, 'h'},          {"port", required_argument, NULL, 'p'},
        {"unix", required_argument, NULL, 'u'},          {"history-bytes", required_argument, NULL, 'r'},
        {"client-buffer", required_argument, NULL, 'b'}, {"notsent-lowat", required_argument, NULL, 'l'},
        {"epoch", required_argument, NULL, 'e'},         {"seconds", required_argument, NULL, 's'},
        {NULL, 0, NULL, 0}};
    const char *host = "127.0.0.1", *path = NULL;
    int port = 0, buffer = 64 * 1024, notsent_lowat = 64 * 1024, seconds = 600, option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'h': host = optarg; break;
        case 'p': port = atoi(optarg); break;
        case 'u': path = optarg; break;
        case 'r': ring_bytes = strtoull(optarg, NULL, 10); break;
        case 'b': buffer = atoi(optarg); break;
        case 'l': notsent_lowat = atoi(optarg); break;
        case 'e': epoch = optarg; break;
        case 's': seconds = atoi(optarg); break;
        default: usage();
        }
    }
    if (!port || !path || optind != argc || strlen(epoch) > 64 || ring_bytes < 4u << 20 ||
        (ring_bytes & (ring_bytes - 1)))
        usage();
    alarm((unsigned)seconds);
    prepare();
    listen_tcp(host, port, buffer, notsent_lowat);
    listen_unix(path);
    puts("ready");
    fflush(stdout);
    run();
}
