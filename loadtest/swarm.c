/* swarm: thousands of SSE clients in one thread, cheap enough not to be what is measured.
 *
 * Opens N streams, reads them with one large buffer, and checks every event (check.h): gaps, duplicates and wrong
 * order of each stream, and one latency histogram of the healthy ones. Some streams may be stalled (nothing is read
 * after the response head) or slow (a few bytes each tick), to be a nuisance. With --topics N, stream i has topic i mod N,
 * which stands for {} in the path, and expects the events whose numbers leave the same rest; {%M} stands for that topic
 * mod M. With --reconnect a stream that has been closed or refused comes back with its last id, and must have lost
 * nothing; with --life S each ends after S/2 to 3 S/2 seconds and a new one takes its place.
 *
 * Owns its sockets and counters; never publishes. Speaks lines of JSON on stdout: one report "ready" when every stream
 * is open or has failed, one "recovered" after a storm, one "mark" for each mark asked for, one "done" at the end. Takes
 * lines on stdin: `until N` (done once every healthy stream has seen event N), `mark`, `reset` (forget the latencies so
 * far), `histograms` (tell them, and forget), `storm` (drop all streams and come back), `stop`. Ends by itself after
 * --seconds, or when stdin ends.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

enum {
    EVENTS_A_TURN = 1024,
    READ_BYTES = 256 * 1024,
    PATH_BYTES_MAX = 2048,
    REQUEST_BYTES = PATH_BYTES_MAX + 512,
    TICK_MS = 100,       /* how often the slow read and the deadlines are looked at */
    SETTLE_MS = 200,     /* after the last event, time for a duplicate to show itself */
};

#define NS_PER_S 1000000000ull

typedef enum { OVER, WAITING, CONNECTING, HEAD, OPEN } state_t;
typedef enum { HEALTHY, SLOW, STALLED } manner_t;
/* A chunk (RFC 9112 section 7.1): its size, what is left of that line, the data, the line end after it. */
typedef enum { RAW, SIZE, EXTENSION, DATA, DATA_END } chunked_t;
typedef struct stream {
    reader_t reader;
    struct stream *after; /* WAITING: behind it in the queue */
    uint64_t asked_ns;    /* when it began to connect */
    uint64_t ends_ns;     /* when its life is over; 0 for none */
    int fd;
    uint8_t state, manner;
    uint8_t begun;       /* has been opened before */
    uint8_t status_read; /* HEAD: the first line has been */
    uint8_t had_event;   /* in this connection */
    uint8_t recovering;  /* dropped by a storm, and has had no event since */
    uint8_t reached;     /* has seen event `until`, or would have if it were of its topic */
    uint8_t chunked;     /* where in a body of chunks */
    uint32_t chunk_left; /* SIZE: the size read so far; DATA: bytes to come */
} stream_t;

typedef struct {
    uint64_t bytes, reads;
    /* failed: no connection; refused: a status other than 200; closed: by the server; dropped: by us, on purpose */
    uint64_t opened, failed, refused, closed, dropped;
} counters_t;

static struct {
    const char *host, *path;
    int port, concurrency, rcvbuf, per_address, slow_bytes;
    uint32_t source_base; /* first source address, host byte order; 0 leaves the choice to the kernel */
    size_t streams, slow, stalled;
    double seconds, life_s;
    int reconnect;
    uint64_t first; /* number of the first event each stream must see; 0 takes any */
} settings = {.host = "127.0.0.1", .path = "/events", .concurrency = 256, .per_address = 10000, .slow_bytes = 1024,
              .source_base = 0x7f010101, .streams = 100, .seconds = 60, .first = 1};

static stream_t *streams;
static counters_t counters;
static histogram_t connects, firsts; /* from the connect to the response head, and to the first event */
static char buffer[READ_BYTES];
static struct sockaddr_in server;
static int epoll_fd, tick_fd;
static size_t in_flight, open_now, healthy_open, reached, recovering;
static uint64_t storm_ns, reopened_ns, recovered_ns;
static struct {
    stream_t *first, *last;
} waiting;
static uint64_t until = NONE;
static uint64_t began_ns, ready_ns, settle_ns;
static int finished;

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

/* ---- reports ---- */

static void report(const char *name)
{
    struct rusage usage;
    uint64_t last_min = NONE, last_max = 0;
    getrusage(RUSAGE_SELF, &usage);
    for (size_t i = 0; i < settings.streams; i++) {
        if (streams[i].manner != HEALTHY || streams[i].state != OPEN)
            continue;
        const uint64_t last = streams[i].reader.next ? streams[i].reader.next - 1 : 0;
        last_min = last < last_min ? last : last_min;
        last_max = last > last_max ? last : last_max;
    }
    printf("{\"report\":\"%s\",\"time_ns\":%" PRIu64 ",\"streams\":%zu,\"opened\":%" PRIu64 ",\"failed\":%" PRIu64
           ",\"refused\":%" PRIu64 ",\"closed\":%" PRIu64 ",\"dropped\":%" PRIu64 ",\"connect_s\":%.6f,\"reopen_s\":%.6f,\"recover_s\":%.6f,\"open\":%zu,\"healthy_open\":%zu,\"reached\":%zu"
           ",\"deliveries\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"reads\":%" PRIu64 ",\"gaps\":%" PRIu64
           ",\"missed\":%" PRIu64 ",\"untold\":%" PRIu64 ",\"told_gaps\":%" PRIu64 ",\"told_missed\":%" PRIu64 ",\"duplicates\":%" PRIu64
           ",\"wrong_order\":%" PRIu64 ",\"torn\":%" PRIu64 ",\"foreign\":%" PRIu64 ",\"last_min\":%" PRIu64
           ",\"last_max\":%" PRIu64 ",\"samples\":%" PRIu64 ",\"p50_ms\":%.3f,\"p90_ms\":%.3f,\"p99_ms\":%.3f"
           ",\"p999_ms\":%.3f,\"max_ms\":%.3f,\"cpu_s\":%.6f}\n",
           name, now_ns(), settings.streams, counters.opened, counters.failed, counters.refused, counters.closed,
           counters.dropped,
           (double)((ready_ns ? ready_ns : now_ns()) - began_ns) / 1e9,
           reopened_ns ? (double)(reopened_ns - storm_ns) / 1e9 : 0,
           recovered_ns ? (double)(recovered_ns - storm_ns) / 1e9 : 0, open_now, healthy_open, reached, checked.deliveries,
           counters.bytes, counters.reads, checked.gaps, checked.missed, checked.untold, checked.told_gaps, checked.told_missed,
           checked.duplicates, checked.wrong_order, checked.torn, checked.foreign, last_min == NONE ? 0 : last_min,
           last_max, latency.samples, quantile_ms(0.5), quantile_ms(0.9), quantile_ms(0.99), quantile_ms(0.999),
           (double)latency.max_ns / 1e6,
           (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
               (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
    fflush(stdout);
}

/* The buckets that hold something: upper end in µs, count. */
static void print_histogram(const char *name, const histogram_t *histogram)
{
    const char *comma = "";
    printf(",\"%s\":[", name);
    for (size_t i = 0; i < BUCKETS; i++) {
        if (!histogram->buckets[i])
            continue;
        printf("%s[%" PRIu64 ",%" PRIu64 "]", comma, bucket_top_us(i), histogram->buckets[i]);
        comma = ",";
    }
    printf("]");
}

static void report_histograms(void)
{
    printf("{\"report\":\"histograms\"");
    print_histogram("delivery", &latency);
    print_histogram("connect", &connects);
    print_histogram("first", &firsts);
    printf("}\n");
    fflush(stdout);
}

static void forget_latencies(void)
{
    memset(&latency, 0, sizeof latency);
    memset(&connects, 0, sizeof connects);
    memset(&firsts, 0, sizeof firsts);
}

/* ---- streams ---- */

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
    stream->state = OVER; /* one that comes back does so at the next tick, lest a server that refuses be run over */
    ++*counter;
    close(stream->fd);
    stream->fd = -1;
}

static void take(stream_t *stream, const char *at, const char *end)
{
    const uint64_t next = stream->reader.next;
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

/* Hand on the data of chunks, which are cut anywhere; their sizes and line ends are not of the stream. */
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
        watch(stream, 0, EPOLL_CTL_MOD); /* still reports the end of the connection */
}

/* Write the path of a stream, with its topic in the places that are meant for it. */
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
    return (size_t)sprintf(request, "GET %.*s HTTP/1.1\r\nHost: %s:%d\r\nAccept: text/event-stream\r\n%s%.*s%s\r\n",
                           (int)make_path(topic, path), path, settings.host, settings.port,
                           with_id ? "Last-Event-ID: " : "", with_id ? place->length : 0, with_id ? place->id : "",
                           with_id ? "\r\n" : "");
}

/* Number of the first event that concerns stream i: the first of its rest from `first` on. */
static uint64_t first_of(size_t i)
{
    const uint64_t rest = i % stride, from = settings.first % stride;
    return settings.first + (rest + stride - from) % stride;
}

/* Send the request, or wait until the connection stands. */
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
    if (!stream->begun || settings.life_s > 0) { /* of another life: a new subscriber */
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
        /* A port is chosen at connect, so that each source address has the whole range to this server. */
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
    /* On loopback the handshake is over when connect returns, so that there is nothing to wait for. */
    send_request(stream, EPOLL_CTL_ADD);
}

/* A line of the response head, without its end. Returns -1 at a status other than 200, 1 at the head's end. */
static int take_head_line(stream_t *stream, char *line)
{
    static const char encoding[] = "transfer-encoding:";
    if (!stream->status_read) {
        stream->status_read = 1;
        return strncmp(line, "HTTP/1.", 7) == 0 && strncmp(line + 8, " 200", 4) == 0 ? 0 : -1;
    }
    if (strncasecmp(line, encoding, sizeof encoding - 1) == 0 && strcasestr(line, "chunked"))
        stream->chunked = SIZE;
    return *line == 0;
}

/* Take the response head; what follows it is the stream. */
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

/* ---- the run ---- */

static void set_until(uint64_t n)
{
    until = n;
    reached = 0;
    settle_ns = 0;
    for (size_t i = 0; i < settings.streams; i++) {
        stream_t *stream = &streams[i];
        stream->reached = stream->manner == HEALTHY && stream->state == OPEN && stream->reader.next > until;
        reached += stream->reached;
    }
}

/* Drop every stream at once, and let all come back. */
static void storm(void)
{
    waiting.first = waiting.last = NULL;
    recovering = settings.streams;
    reopened_ns = recovered_ns = 0;
    storm_ns = now_ns();
    for (size_t i = 0; i < settings.streams; i++) {
        if (streams[i].state > WAITING)
            stream_over(&streams[i], &counters.dropped);
        streams[i].recovering = 1;
        enqueue(&streams[i]);
    }
}

static void take_command(const char *line)
{
    if (strncmp(line, "until ", 6) == 0) {
        set_until(strtoull(line + 6, NULL, 10));
    } else if (strcmp(line, "mark") == 0) {
        report("mark");
    } else if (strcmp(line, "reset") == 0) {
        forget_latencies();
    } else if (strcmp(line, "histograms") == 0) {
        report_histograms();
        forget_latencies();
    } else if (strcmp(line, "storm") == 0) {
        storm();
    } else {
        finished = 1;
    }
}

static void read_commands(void)
{
    static char text[4096];
    static size_t length;
    ssize_t more = read(STDIN_FILENO, text + length, sizeof text - 1 - length);
    if (more < 0 && errno == EAGAIN)
        return;
    if (more <= 0) {
        finished = 1;
        return;
    }
    length += (size_t)more;
    char *line = text, *newline;
    while ((newline = memchr(line, '\n', (size_t)(text + length - line)))) {
        *newline = 0;
        take_command(line);
        line = newline + 1;
    }
    length = (size_t)(text + length - line);
    memmove(text, line, length);
}

static void tick(void)
{
    uint64_t expirations, now = now_ns();
    (void)!read(tick_fd, &expirations, sizeof expirations);
    if (now - began_ns > (uint64_t)(settings.seconds * 1e9))
        finished = 1;
    if (!settings.slow && !settings.reconnect && settings.life_s <= 0)
        return;
    for (size_t i = 0; i < settings.streams; i++) {
        stream_t *stream = &streams[i];
        if (stream->manner == SLOW && stream->state == OPEN)
            read_stream(stream, (size_t)settings.slow_bytes);
        if (stream->ends_ns && now >= stream->ends_ns && stream->state == OPEN)
            stream_over(stream, &counters.dropped);
        if (stream->state == OVER && stream->begun && (settings.reconnect || settings.life_s > 0))
            enqueue(stream);
    }
}

/* After each turn: what comes next. */
static void advance(void)
{
    while (waiting.first && in_flight < (size_t)settings.concurrency)
        connect_next();
    if (!ready_ns && !waiting.first && !in_flight) {
        ready_ns = now_ns();
        report("ready");
    }
    if (storm_ns && !reopened_ns && open_now == settings.streams)
        reopened_ns = now_ns();
    if (reopened_ns && !recovered_ns && !recovering) {
        recovered_ns = now_ns();
        report("recovered");
    }
    if (until != NONE && ready_ns && reached == healthy_open && (!settings.reconnect || open_now == settings.streams)) {
        uint64_t now = now_ns();
        settle_ns = settle_ns ? settle_ns : now + SETTLE_MS * 1000000ull;
        finished |= now >= settle_ns;
    }
}

static void run(void)
{
    struct epoll_event events[EVENTS_A_TURN];
    began_ns = now_ns();
    advance();
    while (!finished) {
        int count = epoll_wait(epoll_fd, events, EVENTS_A_TURN, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr == &tick_fd)
                tick();
            else if (events[i].data.ptr == &epoll_fd)
                read_commands();
            else
                handle(events[i].data.ptr, events[i].events);
        }
        advance();
    }
    report("done");
}

static void prepare(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (settings.streams + 16 > limit.rlim_cur) {
        fprintf(stderr, "swarm: %zu streams, but only %ju descriptors\n", settings.streams, (uintmax_t)limit.rlim_cur);
        exit(2);
    }
    server = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)settings.port)};
    if (inet_pton(AF_INET, settings.host, &server.sin_addr) != 1)
        die("host must be an IPv4 address");
    streams = calloc(settings.streams, sizeof *streams);
    place_t *places = settings.reconnect ? calloc(settings.streams, sizeof *places) : NULL;
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    tick_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (!streams || (settings.reconnect && !places) || epoll_fd < 0 || tick_fd < 0)
        die("start");
    for (size_t i = 0; i < settings.streams; i++) {
        streams[i].reader.place = places ? &places[i] : NULL;
        enqueue(&streams[i]);
    }
    /* The nuisances are spread evenly among the others. */
    size_t odd = settings.slow + settings.stalled;
    for (size_t k = 0; k < odd; k++)
        streams[k * settings.streams / odd].manner = k % odd < settings.stalled ? STALLED : SLOW;
    struct itimerspec every = {.it_interval.tv_nsec = TICK_MS * 1000000, .it_value.tv_nsec = TICK_MS * 1000000};
    timerfd_settime(tick_fd, 0, &every, NULL);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &tick_fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, tick_fd, &event);
    event.data.ptr = &epoll_fd;
    /* A file or /dev/null cannot be watched: then there are no commands. */
    if (fcntl(STDIN_FILENO, F_SETFL, O_NONBLOCK) == 0)
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &event);
}

static void usage(void)
{
    fprintf(stderr,
            "usage: swarm --port N [--host ADDRESS] [--path PATH] [--streams N] [--concurrency N] [--seconds N]\n"
            "             [--first N] [--topics N] [--reconnect] [--life SECONDS]\n"
            "             [--stalled N] [--slow N] [--slow-bytes N] [--rcvbuf N]\n"
            "             [--source ADDRESS|any] [--per-address N]\n");
    exit(2);
}

static uint32_t source_address(const char *text)
{
    struct in_addr address;
    if (strcmp(text, "any") == 0)
        return 0;
    if (inet_pton(AF_INET, text, &address) != 1)
        usage();
    return ntohl(address.s_addr);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"host", required_argument, NULL, 'h'},       {"port", required_argument, NULL, 'p'},
        {"path", required_argument, NULL, 'q'},       {"streams", required_argument, NULL, 'n'},
        {"concurrency", required_argument, NULL, 'c'}, {"seconds", required_argument, NULL, 's'},
        {"first", required_argument, NULL, 'f'},      {"stalled", required_argument, NULL, 'x'},
        {"slow", required_argument, NULL, 'w'},       {"slow-bytes", required_argument, NULL, 'b'},
        {"rcvbuf", required_argument, NULL, 'r'},     {"source", required_argument, NULL, 'a'},
        {"per-address", required_argument, NULL, 'm'}, {"topics", required_argument, NULL, 't'},
        {"reconnect", no_argument, NULL, 'e'},        {"life", required_argument, NULL, 'l'},
        {NULL, 0, NULL, 0}};
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'h': settings.host = optarg; break;
        case 'p': settings.port = atoi(optarg); break;
        case 'q': settings.path = optarg; break;
        case 'n': settings.streams = strtoull(optarg, NULL, 10); break;
        case 'c': settings.concurrency = atoi(optarg); break;
        case 's': settings.seconds = atof(optarg); break;
        case 'f': settings.first = strtoull(optarg, NULL, 10); break;
        case 'x': settings.stalled = strtoull(optarg, NULL, 10); break;
        case 'w': settings.slow = strtoull(optarg, NULL, 10); break;
        case 'b': settings.slow_bytes = atoi(optarg); break;
        case 'r': settings.rcvbuf = atoi(optarg); break;
        case 'a': settings.source_base = source_address(optarg); break;
        case 'm': settings.per_address = atoi(optarg); break;
        case 'e': settings.reconnect = 1; break;
        case 'l': settings.life_s = atof(optarg); break;
        case 't': stride = strtoull(optarg, NULL, 10); break;
        default: usage();
        }
    }
    if (settings.port <= 0 || optind != argc || !settings.streams || settings.concurrency < 1 ||
        settings.per_address < 1 || settings.slow_bytes < 1 || settings.slow_bytes > READ_BYTES ||
        settings.slow + settings.stalled > settings.streams)
        usage();
    stride = stride ? stride : 1; /* 0: no topics of their own */
    prepare();
    run();
}
