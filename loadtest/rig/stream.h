/* stream: one stream of the swarm, from its place in the queue to its end, and the counters of all streams.
 *
 * Connects from the source address of its block of streams, requests its topic, reads the response head, decodes chunks
 * (RFC 9112 section 7.1), and passes the body to check.h. An ended stream stays out of the queue until swarm.c adds it.
 *
 * Owns the sockets, the queue and the counters; never reads a command, writes a report, or decides the next step by the
 * time.
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

enum {
    READ_BYTES = 256 * 1024,
    PATH_BYTES_MAX = 2048,
    CODING_BYTES_MAX = 64,
    REQUEST_BYTES = PATH_BYTES_MAX + 512,
};

#define NS_PER_S 1000000000ull

typedef enum { OVER, WAITING, CONNECTING, HEAD, OPEN } state_t;
typedef enum { HEALTHY, SLOW, STALLED } manner_t;
/* A chunk (RFC 9112 section 7.1): its size, the rest of that line, the data, the line end after it. */
typedef enum { RAW, SIZE, EXTENSION, DATA, DATA_END } chunked_t;
typedef struct stream {
    reader_t reader;
    struct stream *after; /* WAITING: behind it in the queue */
    uint64_t asked_ns;    /* when it began to connect */
    uint64_t ends_ns;     /* when its life ends; 0 for never */
    int fd;
    uint8_t state, manner;
    uint8_t begun;       /* has been opened before */
    uint8_t status_read; /* HEAD: the first line has been read */
    uint8_t had_event;   /* in this connection */
    uint8_t recovering;  /* dropped by a storm, no event received since */
    uint8_t reached;     /* has seen all its events up to event `until` */
    uint8_t chunked;     /* position in a chunked body */
    uint32_t chunk_left; /* SIZE: the size read so far; DATA: remaining bytes */
} stream_t;

typedef struct {
    uint64_t bytes, reads, chunks;
    uint64_t coded; /* opened, with a Content-Encoding */
    /* failed: no connection; refused: a status other than 200; closed: by the server; dropped: by us, on purpose */
    uint64_t opened, failed, refused, closed, dropped;
} counters_t;

static struct {
    const char *host, *path, *accept_encoding;
    int port, concurrency, rcvbuf, per_address, slow_bytes;
    uint32_t source_base; /* first source address, host byte order; 0 leaves the choice to the kernel */
    size_t streams, slow, stalled;
    double seconds, life_s;
    int reconnect;
    int count_only; /* count the bytes and chunks of bodies, and read no events */
    uint64_t first; /* number of the first event that each stream must see; 0 accepts any */
} settings = {.host = "127.0.0.1", .path = "/events", .accept_encoding = "", .concurrency = 256, .per_address = 10000,
              .slow_bytes = 1024, .source_base = 0x7f010101, .streams = 100, .seconds = 60, .first = 1};

static stream_t *streams;
static counters_t counters;
static histogram_t connects, firsts; /* from the connect to the response head, and to the first event */
static char buffer[READ_BYTES];
static struct sockaddr_in server;
static int epoll_fd;
static size_t in_flight, open_now, healthy_open, reached, recovering;
static struct {
    stream_t *first, *last;
} waiting;
static uint64_t until = NONE;

static void die(const char *what)
{
    fprintf(stderr, "swarm: %s: %s\n", what, strerror(errno));
    exit(2);
}

static inline uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static void enqueue(stream_t *stream)
{
    stream->state = WAITING;
    stream->after = NULL;
    if (waiting.last)
        waiting.last->after = stream;
    else
        waiting.first = stream;
    waiting.last = stream;
}

static void watch(stream_t *stream, uint32_t events, int operation)
{
    struct epoll_event event = {.events = events, .data.ptr = stream};
    if (epoll_ctl(epoll_fd, operation, stream->fd, &event) < 0)
        die("epoll_ctl");
}

static void stream_over(stream_t *stream, uint64_t *counter)
{
    if (stream->state != OPEN)
        in_flight--;
    else {
        open_now--;
        if (stream->manner == HEALTHY) {
            healthy_open--;
            reached -= stream->reached;
            stream->reached = 0;
        }
    }
    stream->state = OVER; /* a stream reconnects at the next tick, so that it does not flood a server that refuses it */
    ++*counter;
    close(stream->fd);
    stream->fd = -1;
}

static void take(stream_t *stream, const char *at, const char *end)
{
    const uint64_t next = stream->reader.next;
    if (settings.count_only)
        return;
    parse(&stream->reader, at, end, now_ns());
    if (stream->reader.next > until && !stream->reached && stream->manner == HEALTHY) {
        stream->reached = 1;
        reached++;
    }
    if (!stream->had_event && stream->reader.next > next) {
        stream->had_event = 1;
        record(&firsts, now_ns() - stream->asked_ns);
        recovering -= stream->recovering;
        stream->recovering = 0;
    }
}

/* Pass on the data of chunks, which may be split at any position, without their sizes and line ends. */
static void take_chunks(stream_t *stream, const char *at, const char *end)
{
    while (at < end && stream->state == OPEN) {
        if (stream->chunked == DATA) {
            const size_t there = (size_t)(end - at);
            const uint32_t length = there < stream->chunk_left ? (uint32_t)there : stream->chunk_left;
            take(stream, at, at + length);
            at += length;
            stream->chunk_left -= length;
            if (!stream->chunk_left)
                stream->chunked = DATA_END;
            continue;
        }
        const char c = *at++;
        if (stream->chunked == SIZE && isxdigit((unsigned char)c)) {
            stream->chunk_left = stream->chunk_left * 16 + (uint32_t)(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
        } else if (c != '\n') {
            if (stream->chunked == SIZE)
                stream->chunked = EXTENSION;
        } else if (stream->chunked == DATA_END) {
            stream->chunked = SIZE;
        } else if (stream->chunk_left) {
            stream->chunked = DATA;
            counters.chunks++;
        } else {
            stream_over(stream, &counters.closed); /* the last chunk */
        }
    }
}

static void take_body(stream_t *stream, const char *at, const char *end)
{
    counters.bytes += (uint64_t)(end - at);
    if (stream->chunked == RAW)
        take(stream, at, end);
    else
        take_chunks(stream, at, end);
}

static void stream_open(stream_t *stream)
{
    stream->state = OPEN;
    counters.opened++;
    in_flight--;
    open_now++;
    record(&connects, now_ns() - stream->asked_ns);
    if (settings.life_s > 0)
        stream->ends_ns = now_ns() + (uint64_t)(settings.life_s * (0.5 + (double)rand() / RAND_MAX) * 1e9);
    if (stream->manner == HEALTHY) {
        healthy_open++;
        stream->reached = stream->reader.next > until;
        reached += stream->reached;
    } else
        watch(stream, 0, EPOLL_CTL_MOD); /* epoll still reports the end of the connection */
}

/* Write the path of a stream, with its topic in the placeholders. */
static size_t make_path(size_t topic, char *path)
{
    const char *from = settings.path;
    size_t length = 0;
    while (*from && length < PATH_BYTES_MAX) {
        unsigned long modulus = 0;
        int used = 0;
        if (strncmp(from, "{}", 2) == 0)
            used = 2;
        else
            sscanf(from, "{%%%lu}%n", &modulus, &used);
        if (used)
            length += (size_t)snprintf(path + length, 24, "%zu", modulus ? topic % modulus : topic);
        else
            path[length++] = *from;
        from += used ? used : 1;
    }
    if (*from)
        die("path");
    return length;
}

static size_t make_request(const stream_t *stream, char *request)
{
    char path[PATH_BYTES_MAX + 24];
    const size_t topic = (size_t)(stream - streams) % (size_t)stride;
    const place_t *place = stream->reader.place;
    const int with_id = place && place->length;
    const int coded = settings.accept_encoding[0] != 0;
    return (size_t)sprintf(request, "GET %.*s HTTP/1.1\r\nHost: %s:%d\r\nAccept: text/event-stream\r\n%s%s%s%s%.*s%s\r\n",
                           (int)make_path(topic, path), path, settings.host, settings.port,
                           coded ? "Accept-Encoding: " : "", settings.accept_encoding, coded ? "\r\n" : "",
                           with_id ? "Last-Event-ID: " : "", with_id ? place->length : 0, with_id ? place->id : "",
                           with_id ? "\r\n" : "");
}

/* Number of the first event of stream i: the first n from `first` on with n mod stride = i mod stride. */
static uint64_t first_of(size_t i)
{
    const uint64_t rest = i % stride, from = settings.first % stride;
    return settings.first + (rest + stride - from) % stride;
}

/* Send the request, or wait until the connection is established. */
static void send_request(stream_t *stream, int operation)
{
    static char request[REQUEST_BYTES];
    const size_t length = make_request(stream, request);
    ssize_t sent = send(stream->fd, request, length, MSG_NOSIGNAL);
    if (sent == (ssize_t)length) {
        stream->state = HEAD;
        watch(stream, EPOLLIN, operation);
    } else if (sent >= 0 || errno != EAGAIN) {
        stream_over(stream, &counters.failed);
    } else if (operation == EPOLL_CTL_ADD) {
        watch(stream, EPOLLOUT, operation);
    }
}

static void begin_reading(stream_t *stream, size_t i)
{
    reader_t *reader = &stream->reader;
    if (!stream->begun || settings.life_s > 0) { /* a new life is a new subscriber */
        reader->next = first_of(i);
        reader->any_next = settings.first == 0 || stream->begun;
        reader->told = 0;
        if (reader->place)
            reader->place->length = 0;
    }
    reader->timed = stream->manner == HEALTHY;
    begin_again(reader);
    stream->begun = 1;
    stream->status_read = 0;
    stream->chunked = RAW;
    stream->chunk_left = 0;
    stream->ends_ns = 0;
    stream->asked_ns = now_ns();
    stream->had_event = 0;
}

static void connect_next(void)
{
    stream_t *stream = waiting.first;
    const size_t i = (size_t)(stream - streams);
    int on = 1;
    const struct linger linger = {.l_onoff = 1};
    waiting.first = stream->after;
    if (!waiting.first)
        waiting.last = NULL;
    begin_reading(stream, i);
    stream->state = CONNECTING;
    stream->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    in_flight++;
    if (stream->fd < 0) {
        stream_over(stream, &counters.failed);
        return;
    }
    if (settings.source_base) {
        /* The kernel chooses the port at connect, so each source address has the whole range for this server. */
        struct sockaddr_in source = {.sin_family = AF_INET};
        source.sin_addr.s_addr = htonl(settings.source_base + (uint32_t)(i / (size_t)settings.per_address));
        setsockopt(stream->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
        if (bind(stream->fd, (struct sockaddr *)&source, sizeof source) < 0)
            die("source address");
    }
    if (settings.rcvbuf)
        setsockopt(stream->fd, SOL_SOCKET, SO_RCVBUF, &settings.rcvbuf, sizeof settings.rcvbuf);
    setsockopt(stream->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger); /* leaves no TIME_WAIT behind */
    if (connect(stream->fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS) {
        stream_over(stream, &counters.failed);
        return;
    }
    /* On loopback, the handshake is complete when connect returns, so no wait is needed. */
    send_request(stream, EPOLL_CTL_ADD);
}

/* Take a line of the response head, without its end. Return -1 for a status other than 200, 1 after the head. */
static int take_head_line(stream_t *stream, char *line)
{
    static const char encoding[] = "transfer-encoding:", coding[] = "content-encoding:";
    if (!stream->status_read) {
        stream->status_read = 1;
        return strncmp(line, "HTTP/1.", 7) == 0 && strncmp(line + 8, " 200", 4) == 0 ? 0 : -1;
    }
    if (strncasecmp(line, encoding, sizeof encoding - 1) == 0 && strcasestr(line, "chunked"))
        stream->chunked = SIZE;
    counters.coded += strncasecmp(line, coding, sizeof coding - 1) == 0;
    return *line == 0;
}

/* Take the response head; the bytes after it are the stream. */
static void read_head(stream_t *stream, const char *at, const char *end)
{
    reader_t *reader = &stream->reader;
    int over = 0;
    while (at < end && !over) {
        const char c = *at++;
        if (c != '\n') {
            if (c != '\r' && reader->carried < CARRY_BYTES - 1)
                reader->carry[reader->carried++] = c;
            continue;
        }
        reader->carry[reader->carried] = 0;
        reader->carried = 0;
        over = take_head_line(stream, reader->carry);
    }
    if (over < 0) {
        stream_over(stream, &counters.refused);
    } else if (over) {
        stream_open(stream);
        if (stream->manner != STALLED)
            take_body(stream, at, end);
    }
}

static void read_stream(stream_t *stream, size_t bytes_max)
{
    ssize_t length = recv(stream->fd, buffer, bytes_max, MSG_DONTWAIT);
    if (length <= 0) {
        if (length == 0 || errno != EAGAIN)
            stream_over(stream, stream->state == OPEN ? &counters.closed : &counters.failed);
        return;
    }
    counters.reads++;
    if (stream->state == HEAD) {
        read_head(stream, buffer, buffer + length);
        return;
    }
    take_body(stream, buffer, buffer + length);
}

static void handle(stream_t *stream, uint32_t events)
{
    if (stream->state <= WAITING)
        return;
    if (stream->state == CONNECTING)
        send_request(stream, EPOLL_CTL_MOD);
    else if (stream->state == HEAD || stream->manner == HEALTHY)
        read_stream(stream, sizeof buffer);
    else if (events & (EPOLLHUP | EPOLLERR))
        stream_over(stream, &counters.closed);
}
