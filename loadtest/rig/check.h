/* check: check the events of one stream one by one, and collect the latencies of all streams.
 *
 * Understands only the necessary part of an event stream. The data of an event begins with {"n":NUMBER,"t":NANOSECONDS
 * as `publisher` writes it, or contains it near its beginning if a server wraps it. n increases by the stride for each
 * event of a stream, and t is the time of publishing on CLOCK_MONOTONIC. A relay.gap event contains the number of
 * missed events. Everything else is skipped. Takes bytes split at any position; keeps only the beginning of an
 * unfinished line.
 *
 * Owns the counters and the histogram; never touches a socket or reads a clock.
 */
#include <stdint.h>
#include <string.h>

enum {
    CARRY_BYTES = 160, /* beginning of an unfinished line that is kept; it contains the numbers, even if wrapped */
    HALF_BUCKETS = 64, /* histogram: 64 buckets per power of two of microseconds, an error below 1.6 % */
    BUCKETS = HALF_BUCKETS * 34,
    ID_BYTES_MAX = 64, /* a longer id is not kept, so its stream reconnects without one */
};

#define NONE UINT64_MAX

typedef enum { MESSAGE, GAP, OTHER } event_t;

/* The id to reconnect with: that of the last complete block (WHATWG HTML 9.2.6). */
typedef struct {
    uint8_t length, read_length;
    char id[ID_BYTES_MAX], read[ID_BYTES_MAX]; /* read: of the block that has begun */
} place_t;

/* The reading side of one stream. */
typedef struct {
    uint64_t next;   /* n of the next expected event; the stream has seen all its events before it */
    uint64_t n, t;   /* of the event being read; NONE if absent */
    uint64_t missed; /* of the relay.gap being read; NONE if unknown */
    uint64_t told;   /* events that gaps reported and that n has not skipped yet */
    place_t *place;  /* NULL if streams do not reconnect */
    uint8_t event;
    uint8_t torn;    /* the data line ends in the wrong way */
    uint8_t carried; /* bytes in carry */
    char last_byte;  /* of the unfinished line, except for a carriage return */
    uint8_t any_next; /* the next event may have any number: it is the first, or follows a gap of unknown size */
    uint8_t timed;   /* the latencies of this stream go into the histogram */
    char carry[CARRY_BYTES];
} reader_t;

static struct {
    uint64_t deliveries;
    uint64_t gaps, missed, untold;   /* places where n jumped, skipped events, and those that no gap had reported */
    uint64_t told_gaps, told_missed; /* relay.gap events, and the sum of the missed events that they report */
    uint64_t duplicates, wrong_order, torn, foreign;
} checked;

/* The difference of n between two events of a stream; with N topics, one per stream, it is N. */
static uint64_t stride = 1;

typedef struct {
    uint64_t buckets[BUCKETS];
    uint64_t samples, max_ns;
} histogram_t;

static histogram_t latency;

/* ---- histogram: buckets that widen with the value, as in HdrHistogram ---- */

static inline void record(histogram_t *histogram, uint64_t time_ns)
{
    uint64_t us = time_ns / 1000;
    int shift = us < 2 * HALF_BUCKETS ? 0 : 57 - __builtin_clzll(us);
    size_t bucket = (size_t)shift * HALF_BUCKETS + (us >> shift);
    histogram->buckets[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
    histogram->samples++;
    if (time_ns > histogram->max_ns)
        histogram->max_ns = time_ns;
}

/* Upper end of a bucket, in µs. */
static inline uint64_t bucket_top_us(size_t bucket)
{
    int shift = bucket < 2 * HALF_BUCKETS ? 0 : (int)(bucket / HALF_BUCKETS) - 1;
    return (bucket - (uint64_t)shift * HALF_BUCKETS + 1) << shift;
}

/* Upper end of the bucket that contains the quantile, in ms. */
static double quantile_ms(double quantile)
{
    uint64_t rank = (uint64_t)(quantile * (double)latency.samples), seen = 0;
    for (size_t bucket = 0; bucket < BUCKETS; bucket++) {
        seen += latency.buckets[bucket];
        if (seen > rank) {
            uint64_t top = bucket_top_us(bucket) * 1000;
            return (double)(top < latency.max_ns ? top : latency.max_ns) / 1e6;
        }
    }
    return (double)latency.max_ns / 1e6;
}

/* ---- the event stream, its necessary part ---- */

static inline const char *number(const char *at, const char *end, uint64_t *value)
{
    uint64_t result = 0;
    while (at < end && (unsigned)(*at - '0') < 10)
        result = result * 10 + (uint64_t)(*at++ - '0');
    *value = result;
    return at;
}

/* Data: find the numbers of an event anywhere in the kept part of the line. */
static inline void take_data(reader_t *reader, const char *data, const char *end, char last)
{
    static const char published[] = "{\"n\":", time[] = ",\"t\":", missed[] = "\"missed\":";
    const size_t length = (size_t)(end - data);
    if (reader->event == GAP) {
        const char *at = memmem(data, length, missed, sizeof missed - 1);
        if (at && number(at + sizeof missed - 1, end, &reader->missed) == at + sizeof missed - 1)
            reader->missed = NONE;
        return;
    }
    const char *at = length > sizeof published && memcmp(data, published, sizeof published - 1) == 0
                         ? data
                         : memmem(data, length < CARRY_BYTES ? length : CARRY_BYTES, published, sizeof published - 1);
    if (!at)
        return;
    at = number(at + sizeof published - 1, end, &reader->n);
    reader->torn |= last != '}' || at == end;
    if ((size_t)(end - at) > sizeof time && memcmp(at, time, sizeof time - 1) == 0 &&
        number(at + sizeof time - 1, end, &reader->t) == end)
        reader->t = NONE;
}

/* A field; `last` is the last byte of the line, which may lie beyond the kept part of a long line. */
static inline void take_line(reader_t *reader, const char *line, size_t length, char last)
{
    const char *end = line + length;
    if (length > 5 && memcmp(line, "data:", 5) == 0) {
        line += 5;
        line += *line == ' ';
        take_data(reader, line, end, last);
    } else if (length > 6 && memcmp(line, "event:", 6) == 0) {
        line += 6;
        line += *line == ' ';
        if (end - line == 9 && memcmp(line, "relay.gap", 9) == 0)
            reader->event = GAP;
        else if (end - line < 6 || memcmp(line, "relay.", 6) != 0)
            reader->event = OTHER; /* relay's own events, such as its heartbeat, do not count */
    } else if (reader->place && length >= 3 && memcmp(line, "id:", 3) == 0) {
        line += 3;
        line += line < end && *line == ' ';
        const size_t kept = (size_t)(end - line) <= ID_BYTES_MAX ? (size_t)(end - line) : 0;
        memcpy(reader->place->read, line, kept);
        reader->place->read_length = (uint8_t)kept;
    }
}

static inline void count_gap(reader_t *reader)
{
    checked.told_gaps++;
    if (reader->missed == NONE) {
        reader->any_next = 1;
    } else {
        checked.told_missed += reader->missed;
        reader->told += reader->missed;
    }
}

static inline void count_jump(reader_t *reader)
{
    const uint64_t missed = (reader->n - reader->next) / stride;
    const uint64_t told = missed < reader->told ? missed : reader->told;
    checked.gaps++;
    checked.missed += missed;
    checked.untold += missed - told;
    reader->told -= told;
}

static inline void count_event(reader_t *reader, uint64_t now)
{
    checked.deliveries++;
    if (stride > 1 && reader->n % stride != reader->next % stride) {
        checked.foreign++;
        return;
    }
    if (reader->n >= reader->next) {
        if (reader->n > reader->next && !reader->any_next)
            count_jump(reader);
        reader->next = reader->n + stride;
    } else if (reader->n + stride == reader->next) {
        checked.duplicates++;
    } else {
        checked.wrong_order++;
    }
    reader->any_next = 0;
    if (reader->timed && reader->t != NONE)
        record(&latency, now > reader->t ? now - reader->t : 0);
}

static inline void next_block(reader_t *reader)
{
    reader->event = MESSAGE;
    reader->torn = 0;
    reader->n = reader->t = NONE;
    reader->missed = 0;
}

static inline void dispatch(reader_t *reader, uint64_t now)
{
    if (reader->event == GAP)
        count_gap(reader);
    else if (reader->n == NONE)
        /* A block with only id or retry has no event; other data or another type means a foreign event. */
        checked.foreign += reader->event == OTHER;
    else if (reader->torn)
        checked.torn++;
    else
        count_event(reader, now);
    if (reader->place) {
        memcpy(reader->place->id, reader->place->read, reader->place->read_length);
        reader->place->length = reader->place->read_length;
    }
    next_block(reader);
}

/* Begin a connection: discard the half-read block of the previous one, keep the seen and reported events. */
static inline void begin_again(reader_t *reader)
{
    reader->carried = 0;
    next_block(reader);
    if (reader->place) {
        memcpy(reader->place->read, reader->place->id, reader->place->length);
        reader->place->read_length = reader->place->length;
    }
}

/* The last byte before the line end, which includes a carriage return; `before` is that of the previous piece. */
static inline char last_byte(const char *at, size_t length, char before)
{
    if (length && at[length - 1] == '\r')
        length--;
    return length ? at[length - 1] : before;
}

static void parse(reader_t *reader, const char *at, const char *end, uint64_t now)
{
    while (at < end) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        const char *line = at;
        size_t length = (size_t)((newline ? newline : end) - at);
        const char last = last_byte(at, length, reader->last_byte);
        if (reader->carried || !newline) {
            size_t room = CARRY_BYTES - reader->carried, more = length < room ? length : room;
            memcpy(reader->carry + reader->carried, at, more);
            reader->carried = (uint8_t)(reader->carried + more);
            reader->last_byte = last;
            if (!newline)
                return;
            line = reader->carry;
            length = reader->carried;
            reader->carried = 0;
        }
        at = newline + 1;
        if (length && line[length - 1] == '\r')
            length--;
        if (length)
            take_line(reader, line, length, last);
        else
            dispatch(reader, now);
    }
}
