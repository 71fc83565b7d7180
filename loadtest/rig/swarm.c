/* swarm: thousands of SSE clients in one thread, cheap enough not to distort the measurement.
 *
 * Opens N streams, reads them with one large buffer, and checks every event (check.h): gaps, duplicates and wrong
 * order of each stream, and one latency histogram of the healthy streams. To disturb the server, some streams may stall
 * (read nothing after the response head) or be slow (read a few bytes each tick). With --topics N, stream i has topic
 * i mod N, which replaces {} in the path, and expects the events n with n mod N = i mod N; that topic mod M replaces
 * {%M}. With --reconnect, a closed or refused stream reconnects with its last id and must have lost nothing. With
 * --life S, each stream ends after S/2 to 3 S/2 seconds and a new one takes its place. With --accept-encoding, the
 * requests ask for a coded body. The swarm decodes nothing: with --count-only, it counts bytes and chunks only.
 *
 * Owns its sockets and counters; never publishes. Writes lines of JSON to stdout: a report "ready" when every stream
 * is open or has failed, "recovered" after a storm, "mark" for each command `mark`, and "done" at the end. Reads
 * commands from stdin: `until N` (done once every healthy stream has seen event N), `mark`, `reset` (discard the
 * latencies so far), `histograms` (report and discard them), `storm` (drop all streams and reconnect), `reload` (drop
 * all streams and begin again, as a browser does when its pages are reloaded), `stop`. Ends after --seconds, or when
 * stdin ends.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <getopt.h>
#include <sys/resource.h>
#include <sys/timerfd.h>

#include "stream.h"

enum {
    EVENTS_A_TURN = 1024,
    TICK_MS = 100,   /* period in which slow streams read, deadlines are checked and ended streams reconnect */
    SETTLE_MS = 200, /* after the last event, time for a duplicate to arrive */
};

static int tick_fd;
static uint64_t began_ns, ready_ns, settle_ns;
static uint64_t storm_ns, reopened_ns, recovered_ns;
static int finished;

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
           ",\"refused\":%" PRIu64 ",\"closed\":%" PRIu64 ",\"dropped\":%" PRIu64,
           name, now_ns(), settings.streams, counters.opened, counters.failed, counters.refused, counters.closed,
           counters.dropped);
    printf(",\"connect_s\":%.6f,\"reopen_s\":%.6f,\"recover_s\":%.6f,\"open\":%zu,\"healthy_open\":%zu,\"reached\":%zu",
           (double)((ready_ns ? ready_ns : now_ns()) - began_ns) / 1e9,
           reopened_ns ? (double)(reopened_ns - storm_ns) / 1e9 : 0,
           recovered_ns ? (double)(recovered_ns - storm_ns) / 1e9 : 0, open_now, healthy_open, reached);
    printf(",\"coded\":%" PRIu64 ",\"chunks\":%" PRIu64, counters.coded, counters.chunks);
    printf(",\"deliveries\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"reads\":%" PRIu64 ",\"gaps\":%" PRIu64
           ",\"missed\":%" PRIu64 ",\"untold\":%" PRIu64 ",\"told_gaps\":%" PRIu64 ",\"told_missed\":%" PRIu64
           ",\"duplicates\":%" PRIu64 ",\"wrong_order\":%" PRIu64 ",\"torn\":%" PRIu64 ",\"foreign\":%" PRIu64,
           checked.deliveries, counters.bytes, counters.reads, checked.gaps, checked.missed, checked.untold,
           checked.told_gaps, checked.told_missed, checked.duplicates, checked.wrong_order, checked.torn,
           checked.foreign);
    printf(",\"last_min\":%" PRIu64 ",\"last_max\":%" PRIu64 ",\"samples\":%" PRIu64 ",\"p50_ms\":%.3f,\"p90_ms\":%.3f"
           ",\"p99_ms\":%.3f,\"p999_ms\":%.3f,\"max_ms\":%.3f,\"cpu_s\":%.6f}\n",
           last_min == NONE ? 0 : last_min, last_max, latency.samples, quantile_ms(0.5), quantile_ms(0.9),
           quantile_ms(0.99), quantile_ms(0.999), (double)latency.max_ns / 1e6,
           (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
               (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
    fflush(stdout);
}

/* The buckets that are not empty: upper end in µs, count. */
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

/* Drop every stream at once, and let all reconnect. With `forget`, each begins again as a new subscriber. */
static void storm(int forget)
{
    waiting.first = waiting.last = NULL;
    recovering = settings.streams;
    reopened_ns = recovered_ns = 0;
    storm_ns = now_ns();
    for (size_t i = 0; i < settings.streams; i++) {
        if (streams[i].state > WAITING)
            stream_over(&streams[i], &counters.dropped);
        streams[i].recovering = 1;
        if (forget)
            streams[i].begun = 0;
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
        storm(0);
    } else if (strcmp(line, "reload") == 0) {
        storm(1);
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

/* After each turn: decide the next step. */
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
    /* The stalled and slow streams are distributed evenly among the others. */
    size_t odd = settings.slow + settings.stalled;
    for (size_t k = 0; k < odd; k++)
        streams[k * settings.streams / odd].manner = k % odd < settings.stalled ? STALLED : SLOW;
    struct itimerspec every = {.it_interval.tv_nsec = TICK_MS * 1000000, .it_value.tv_nsec = TICK_MS * 1000000};
    timerfd_settime(tick_fd, 0, &every, NULL);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &tick_fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, tick_fd, &event);
    event.data.ptr = &epoll_fd;
    /* epoll cannot watch a file or /dev/null; then there are no commands. */
    if (fcntl(STDIN_FILENO, F_SETFL, O_NONBLOCK) == 0)
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &event);
}

static void usage(void)
{
    fprintf(stderr,
            "usage: swarm --port N [--host ADDRESS] [--path PATH] [--streams N] [--concurrency N] [--seconds N]\n"
            "             [--first N] [--topics N] [--reconnect] [--life SECONDS]\n"
            "             [--stalled N] [--slow N] [--slow-bytes N] [--rcvbuf N]\n"
            "             [--source ADDRESS|any] [--per-address N] [--accept-encoding CODING] [--count-only]\n");
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
        {"accept-encoding", required_argument, NULL, 'g'}, {"count-only", no_argument, NULL, 'k'},
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
        case 'g': settings.accept_encoding = optarg; break;
        case 'k': settings.count_only = 1; break;
        case 't': stride = strtoull(optarg, NULL, 10); break;
        default: usage();
        }
    }
    if (settings.port <= 0 || optind != argc || !settings.streams || settings.concurrency < 1 ||
        settings.per_address < 1 || settings.slow_bytes < 1 || settings.slow_bytes > READ_BYTES ||
        settings.slow + settings.stalled > settings.streams || strlen(settings.accept_encoding) > CODING_BYTES_MAX)
        usage();
    stride = stride ? stride : 1; /* 0: one topic for all streams */
    prepare();
    run();
}
