/* answers: count the responses of an HTTP/1.1 server on one connection.
 *
 * Understands status lines, and bodies with Content-Length, chunked bodies or none. Takes bytes split at any position
 * and keeps an unfinished answer, whose length is bounded. Owns the counters; never touches a socket.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { ANSWER_BYTES_MAX = 64 * 1024 };

static struct {
    uint64_t taken;         /* answers */
    uint64_t refused;       /* of these with a status that is not 2xx */
    uint64_t refused_bytes; /* of their bodies */
    int first_refusal;      /* status of the first such answer */
    int closing;            /* the server announced that it closes the connection after this answer */
} answers;

static char pending[ANSWER_BYTES_MAX + 1];
static size_t pending_bytes;

/* The value of a header, or NULL. The head ends with an empty line and a NUL. */
static const char *header(const char *head, const char *name)
{
    size_t length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, name, length) && line[2 + length] == ':')
            return line + 3 + length + strspn(line + 3 + length, " \t");
    return NULL;
}

/* Length of a chunked body, including its empty trailer; 0 while it is unfinished. */
static size_t chunked_bytes(const char *body, const char *end)
{
    for (const char *at = body;;) {
        const char *line = memmem(at, (size_t)(end - at), "\r\n", 2);
        if (!line)
            return 0;
        size_t size = strtoull(at, NULL, 16);
        if (size + 4 > (size_t)(end - line)) /* the end of this line, the chunk, and the line end after it */
            return 0;
        at = line + 4 + size;
        if (!size)
            return (size_t)(at - body);
    }
}

/* Count the first pending answer and return its length; 0 while it is unfinished. */
static size_t take_answer(void)
{
    char *blank = memmem(pending, pending_bytes, "\r\n\r\n", 4);
    if (!blank)
        return 0;
    const char *body = blank + 4, *end = pending + pending_bytes;
    char first = *body;
    *(char *)body = 0;
    int status = 0;
    sscanf(pending, "HTTP/1.%*c %3d", &status);
    const char *length = header(pending, "Content-Length"), *coding = header(pending, "Transfer-Encoding");
    const char *connection = header(pending, "Connection");
    int chunked = coding && !strncasecmp(coding, "chunked", 7);
    int closing = connection && !strncasecmp(connection, "close", 5);
    *(char *)body = first;
    size_t bytes = chunked ? chunked_bytes(body, end) : length ? strtoull(length, NULL, 10) : 0;
    if ((chunked && !bytes) || bytes > (size_t)(end - body))
        return 0;
    answers.taken++;
    answers.closing |= closing;
    if (status < 200 || status > 299) {
        if (!answers.refused++) {
            answers.first_refusal = status;
            fprintf(stderr, "publisher: refused: %.*s\n", (int)(body + bytes - pending), pending);
        }
        answers.refused_bytes += bytes;
    }
    return (size_t)(body - pending) + bytes;
}

/* The address to read to, and the maximum number of bytes. */
static char *room(size_t *bytes)
{
    *bytes = ANSWER_BYTES_MAX - pending_bytes;
    return pending + pending_bytes;
}

/* Take the bytes that were read; -1 if an answer exceeds its maximum length. */
static int feed_answers(size_t bytes)
{
    pending_bytes += bytes;
    pending[pending_bytes] = 0;
    for (size_t whole; pending_bytes && (whole = take_answer());) {
        memmove(pending, pending + whole, pending_bytes - whole);
        pending_bytes -= whole;
    }
    return pending_bytes == ANSWER_BYTES_MAX ? -1 : 0;
}
