/* publisher: publish numbered and stamped events at a fixed rate, as NDJSON into a Unix socket or as HTTP requests.
 *
 * The data of an event is {"n":NUMBER,"t":NANOSECONDS,"p":"xxx…"}. n increases by one, t is CLOCK_MONOTONIC when the
 * event is made, and the data is --size bytes long. With --topics N, event n goes to topic t.<n mod N>. Events have
 * absolute deadlines: after a sleep or a delay by the server, all due events are sent together. Rate 0 writes as fast
 * as the server reads.
 *
 * On a socket, each event is a line {"topic":"t.7","data":…}, without a topic unless --topics is given. Over HTTP, each
 * event is a POST (see request.h) on one persistent connection, with at most --depth unanswered requests.
 *
 * Bounded by --count and --seconds. At the end, the publisher waits until the server has read everything and closed its
 * side, or has answered each request. Then it prints one line of JSON.
 */
#define _GNU_SOURCE
#include "answers.h"
#include "request.h"
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    BATCH_BYTES = 64 * 1024,
    DATA_BYTES_MIN = 64,
    DATA_BYTES_MAX = 32 * 1024,
    EVENT_BYTES_MAX = 128 * 1024, /* of a line or a request: percent-encoding makes three bytes of one, at most */
    DEPTH_MAX = 256,              /* so that the answers fit into the socket's buffers while requests are written */
    CLOSE_MS = 30000,
};

#define NS_PER_S 1000000000ull

static volatile sig_atomic_t stopped;

/* Where events go: a Unix socket, or a port for HTTP. */
static struct {
    const char *path;
    int port;
    uint64_t depth;
    const char *topic; /* of all events over HTTP, unless there are topics */
    uint64_t topics;
    size_t data_bytes;
} to = {.depth = 1, .topic = "default", .data_bytes = 150};

static void stop(int signal_number)
{
    (void)signal_number;
    stopped = 1;
}

static void die(const char *what)
{
    fprintf(stderr, "publisher: %s: %s\n", what, strerror(errno));
    exit(2);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static void sleep_until(uint64_t deadline_ns)
{
    struct timespec t = {.tv_sec = (time_t)(deadline_ns / NS_PER_S), .tv_nsec = (long)(deadline_ns % NS_PER_S)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static char *decimal(char *out, uint64_t value)
{
    char digits[20];
    size_t n = 0;
    do
        digits[n++] = (char)('0' + value % 10);
    while (value /= 10);
    while (n)
        *out++ = digits[--n];
    return out;
}

static char *make_data(char *out, uint64_t n, uint64_t t)
{
    char *data = out;
    out = decimal((char *)mempcpy(out, "{\"n\":", 5), n);
    out = decimal((char *)mempcpy(out, ",\"t\":", 5), t);
    out = (char *)mempcpy(out, ",\"p\":\"", 6);
    size_t padding = to.data_bytes - (size_t)(out - data) - 2;
    memset(out, 'x', padding);
    return (char *)mempcpy(out + padding, "\"}", 2);
}

static char *make_event(char *out, uint64_t n, uint64_t t)
{
    char topic[24] = "t.";
    if (to.topics)
        *decimal(topic + 2, n % to.topics) = 0;
    if (to.path) {
        *out++ = '{';
        if (to.topics)
            out = stpcpy(stpcpy(stpcpy(out, "\"topic\":\""), topic), "\",");
        return stpcpy(make_data(stpcpy(out, "\"data\":"), n, t), "}\n");
    }
    char data[DATA_BYTES_MAX];
    size_t length = (size_t)(make_data(data, n, t) - data);
    return make_request(out, to.topics ? topic : to.topic, data, length);
}

static int connect_unix(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || strlen(to.path) >= sizeof address.sun_path)
        die(to.path);
    strcpy(address.sun_path, to.path);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die(to.path);
    return fd;
}

static int connect_http(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)to.port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static int write_all(int fd, const char *at, const char *end)
{
    while (at < end) {
        ssize_t written = send(fd, at, (size_t)(end - at), MSG_NOSIGNAL);
        if (written < 0 && errno == EINTR && !stopped)
            continue;
        if (written < 0)
            return -1;
        at += written;
    }
    return 0;
}

/* Read answers until at most the given number is outstanding; -1 if they do not arrive. */
static int await_answers(int fd, uint64_t sent, uint64_t missing_max)
{
    uint64_t deadline = now_ns() + CLOSE_MS * 1000000ull;
    while (sent - answers.taken > missing_max) {
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        if (poll(&wait, 1, 1000) < 0 && stopped)
            return -1;
        size_t bytes;
        char *place = room(&bytes);
        ssize_t length = recv(fd, place, bytes, MSG_DONTWAIT);
        if (length == 0 || (length < 0 && errno != EAGAIN && errno != EINTR) || now_ns() > deadline)
            return -1;
        if (length > 0 && feed_answers((size_t)length) < 0)
            return -1;
    }
    return 0;
}

/* Wait until another request may be written; reconnect if the server closes the connection. */
static int make_way(int *fd, uint64_t sent)
{
    if (await_answers(*fd, sent, to.depth - 1) < 0)
        return -1;
    if (answers.closing) {
        if (await_answers(*fd, sent, 0) < 0)
            return -1;
        close(*fd);
        *fd = connect_http();
        answers.closing = 0;
    }
    return 0;
}

/* Wait until the server has closed its side; answers (to rejected lines) are counted, not parsed. */
static int await_close(int fd, uint64_t *answered_bytes)
{
    char text[4096];
    uint64_t deadline = now_ns() + CLOSE_MS * 1000000ull;
    shutdown(fd, SHUT_WR);
    while (now_ns() < deadline) {
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        poll(&wait, 1, 1000);
        ssize_t length = recv(fd, text, sizeof text, MSG_DONTWAIT);
        if (length == 0 || (length < 0 && errno == ECONNRESET))
            return 1;
        if (length > 0)
            *answered_bytes += (uint64_t)length;
    }
    return 0;
}

static void add_header(const char *line)
{
    size_t used = strlen(request.head);
    if (used + strlen(line) + 3 > sizeof request.head) {
        errno = E2BIG;
        die("--header");
    }
    stpcpy(stpcpy(request.head + used, line), "\r\n");
}

static escape_t escape_named(const char *name)
{
    static const char *const names[] = {[RAW] = "raw", [JSON] = "json", [FORM] = "form"};
    for (escape_t escape = RAW; escape <= FORM; escape++)
        if (!strcmp(name, names[escape]))
            return escape;
    errno = EINVAL;
    die("--escape");
    return RAW;
}

static void usage(void)
{
    fprintf(stderr, "usage: publisher (--unix PATH | --http PORT --target TARGET) [--rate N] [--count N] [--seconds N]\n"
                    "                 [--size BYTES] [--first N] [--topics N]\n"
                    "  over HTTP:     [--body TEMPLATE] [--escape raw|json|form] [--header LINE]... [--depth N]\n"
                    "                 [--topic NAME]\n");
    exit(2);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"unix", required_argument, NULL, 'u'},   {"rate", required_argument, NULL, 'r'},
        {"count", required_argument, NULL, 'c'},  {"seconds", required_argument, NULL, 's'},
        {"size", required_argument, NULL, 'z'},   {"first", required_argument, NULL, 'f'},
        {"topics", required_argument, NULL, 'n'}, {"topic", required_argument, NULL, 't'},
        {"http", required_argument, NULL, 'p'},   {"target", required_argument, NULL, 'g'},
        {"body", required_argument, NULL, 'b'},   {"escape", required_argument, NULL, 'e'},
        {"header", required_argument, NULL, 'h'}, {"depth", required_argument, NULL, 'd'},
        {NULL, 0, NULL, 0}};
    static char batch[BATCH_BYTES + EVENT_BYTES_MAX];
    double rate = 100, seconds = 60;
    uint64_t count = UINT64_MAX, first = 1, sent = 0, blocked_ns = 0, behind_ns = 0, answered_bytes = 0;
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'u': to.path = optarg; break;
        case 'r': rate = atof(optarg); break;
        case 'c': count = strtoull(optarg, NULL, 10); break;
        case 's': seconds = atof(optarg); break;
        case 'z': to.data_bytes = strtoull(optarg, NULL, 10); break;
        case 'f': first = strtoull(optarg, NULL, 10); break;
        case 'n': to.topics = strtoull(optarg, NULL, 10); break;
        case 't': to.topic = optarg; break;
        case 'p': to.port = atoi(optarg); break;
        case 'g': request.target = optarg; break;
        case 'b': request.body = optarg; break;
        case 'e': request.escape = escape_named(optarg); break;
        case 'h': add_header(optarg); break;
        case 'd': to.depth = strtoull(optarg, NULL, 10); break;
        default: usage();
        }
    }
    if (!to.path == !to.port || !to.port != !request.target || optind != argc || to.data_bytes < DATA_BYTES_MIN ||
        to.data_bytes > DATA_BYTES_MAX || rate < 0 || !to.depth || to.depth > DEPTH_MAX)
        usage();
    struct sigaction action = {.sa_handler = stop}; /* without SA_RESTART, so that a blocked write ends */
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);

    int fd = to.path ? connect_unix() : connect_http(), failed = 0;
    const uint64_t began = now_ns(), end = began + (uint64_t)(seconds * 1e9);
    uint64_t now = began;
    while (sent < count && now < end && !stopped && !failed) {
        /* Event k is due k/rate seconds after the beginning. */
        uint64_t due = rate > 0 ? (uint64_t)((double)(now - began) * rate / 1e9) + 1 : UINT64_MAX;
        if (due > count)
            due = count;
        if (sent >= due) {
            uint64_t next = began + (uint64_t)((double)sent / rate * 1e9) + 1;
            sleep_until(next < end ? next : end);
            now = now_ns();
            continue;
        }
        if (to.port) {
            uint64_t asked = now;
            failed = make_way(&fd, sent);
            now = now_ns();
            blocked_ns += now - asked;
            if (due > answers.taken + to.depth)
                due = answers.taken + to.depth;
        }
        if (rate > 0) {
            uint64_t late = now - began - (uint64_t)((double)sent / rate * 1e9);
            behind_ns = late > behind_ns ? late : behind_ns;
        }
        char *out = batch;
        while (!failed && sent < due && out < batch + BATCH_BYTES)
            out = make_event(out, first + sent++, now);
        failed = failed || write_all(fd, batch, out);
        uint64_t after = now_ns();
        blocked_ns += after - now;
        now = after;
    }
    const uint64_t written_ns = now_ns() - began;
    int taken;
    if (to.path) {
        taken = await_close(fd, &answered_bytes);
    } else {
        taken = await_answers(fd, sent, 0) == 0 && !answers.refused;
        answered_bytes = answers.refused_bytes;
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"report\":\"done\",\"sent\":%" PRIu64 ",\"last\":%" PRIu64 ",\"write_s\":%.6f,\"taken_s\":%.6f"
           ",\"taken\":%s,\"in_writes_s\":%.6f,\"behind_max_ms\":%.3f,\"answered\":%" PRIu64 ",\"refused\":%" PRIu64
           ",\"first_refusal\":%d,\"answered_bytes\":%" PRIu64 ",\"cpu_s\":%.6f}\n",
           sent, first + sent - 1, (double)written_ns / 1e9, (double)(now_ns() - began) / 1e9, taken ? "true" : "false",
           (double)blocked_ns / 1e9, (double)behind_ns / 1e6, answers.taken, answers.refused, answers.first_refusal,
           answered_bytes,
           (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
               (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
    return 0;
}
