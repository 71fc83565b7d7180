/* publisher: NDJSON into a Unix socket at a fixed rate, each event numbered and stamped.
 *
 * Writes lines {"data":{"n":NUMBER,"t":NANOSECONDS,"p":"xxx…"}} where n goes up by one, t is CLOCK_MONOTONIC as the line
 * is made, and the data is --size bytes in all. Paced by absolute deadlines: what fell due while it was asleep or
 * held up by the server goes out together. Rate 0 writes as fast as the server takes it.
 *
 * Bounded by --count and --seconds. At the end it half-closes, waits until the server has read everything and closed
 * its side, and prints one line of JSON.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
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

enum { BATCH_BYTES = 64 * 1024, DATA_BYTES_MIN = 64, DATA_BYTES_MAX = 32 * 1024, CLOSE_MS = 30000 };

#define NS_PER_S 1000000000ull

static volatile sig_atomic_t stopped;

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

static char *make_line(char *out, uint64_t n, uint64_t t, size_t size)
{
    out = (char *)mempcpy(out, "{\"data\":", 8);
    char *data = out;
    out = decimal((char *)mempcpy(out, "{\"n\":", 5), n);
    out = decimal((char *)mempcpy(out, ",\"t\":", 5), t);
    out = (char *)mempcpy(out, ",\"p\":\"", 6);
    size_t padding = size - (size_t)(out - data) - 2;
    memset(out, 'x', padding);
    return (char *)mempcpy(out + padding, "\"}}\n", 4);
}

static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || strlen(path) >= sizeof address.sun_path)
        die(path);
    strcpy(address.sun_path, path);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die(path);
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

/* Wait until the server has closed its side; answers (to lines it refused) are counted, not read. */
static int finish(int fd, uint64_t *answered_bytes)
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

static void usage(void)
{
    fprintf(stderr, "usage: publisher --unix PATH [--rate N] [--count N] [--seconds N] [--size BYTES] [--first N]\n");
    exit(2);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"unix", required_argument, NULL, 'u'},  {"rate", required_argument, NULL, 'r'},
        {"count", required_argument, NULL, 'c'}, {"seconds", required_argument, NULL, 's'},
        {"size", required_argument, NULL, 'z'},  {"first", required_argument, NULL, 'f'},
        {NULL, 0, NULL, 0}};
    static char batch[BATCH_BYTES + DATA_BYTES_MAX + 64];
    const char *path = NULL;
    double rate = 100, seconds = 60;
    uint64_t count = UINT64_MAX, first = 1, sent = 0, blocked_ns = 0, behind_ns = 0, answered_bytes = 0;
    size_t size = 150;
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'u': path = optarg; break;
        case 'r': rate = atof(optarg); break;
        case 'c': count = strtoull(optarg, NULL, 10); break;
        case 's': seconds = atof(optarg); break;
        case 'z': size = strtoull(optarg, NULL, 10); break;
        case 'f': first = strtoull(optarg, NULL, 10); break;
        default: usage();
        }
    }
    if (!path || optind != argc || size < DATA_BYTES_MIN || size > DATA_BYTES_MAX || rate < 0)
        usage();
    struct sigaction action = {.sa_handler = stop}; /* without SA_RESTART, so that a blocked write ends */
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);

    int fd = connect_to(path);
    const uint64_t began = now_ns(), end = began + (uint64_t)(seconds * 1e9);
    uint64_t now = began;
    while (sent < count && now < end && !stopped) {
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
        if (rate > 0) {
            uint64_t late = now - began - (uint64_t)((double)sent / rate * 1e9);
            behind_ns = late > behind_ns ? late : behind_ns;
        }
        char *out = batch;
        while (sent < due && out < batch + BATCH_BYTES)
            out = make_line(out, first + sent++, now, size);
        int failed = write_all(fd, batch, out);
        uint64_t after = now_ns();
        blocked_ns += after - now;
        now = after;
        if (failed)
            break;
    }
    const uint64_t written_ns = now_ns() - began;
    int taken = finish(fd, &answered_bytes);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"report\":\"done\",\"sent\":%" PRIu64 ",\"last\":%" PRIu64 ",\"write_s\":%.6f,\"taken_s\":%.6f"
           ",\"taken\":%s,\"in_writes_s\":%.6f,\"behind_max_ms\":%.3f,\"answered_bytes\":%" PRIu64 ",\"cpu_s\":%.6f}\n",
           sent, first + sent - 1, (double)written_ns / 1e9, (double)(now_ns() - began) / 1e9, taken ? "true" : "false",
           (double)blocked_ns / 1e9, (double)behind_ns / 1e6, answered_bytes,
           (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
               (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
    return 0;
}
