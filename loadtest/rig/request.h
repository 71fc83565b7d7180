/* request: make an HTTP request from an event and templates.
 *
 * The topic and the data of the event replace {topic} and {data} in the target and the body. The data in the body is
 * raw, escaped for the inside of a JSON string, or percent-encoded. Owns the templates; never touches a socket.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef enum { RAW, JSON, FORM } escape_t;

static struct {
    const char *target, *body;
    escape_t escape;
    char head[4096]; /* the headers, each with its line end */
} request = {.body = "{data}"};

static char *escaped(char *out, const char *from, size_t length, escape_t escape)
{
    static const char hex[] = "0123456789ABCDEF";
    if (escape == RAW)
        return (char *)mempcpy(out, from, length);
    for (const char *end = from + length; from < end; from++) {
        unsigned char c = (unsigned char)*from;
        int plain = (c | 32) >= 'a' && (c | 32) <= 'z';
        plain |= (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_' || c == '~';
        if (escape == JSON && (c == '"' || c == '\\'))
            *out++ = '\\';
        if (escape == JSON || plain) {
            *out++ = (char)c;
        } else {
            *out++ = '%';
            *out++ = hex[c >> 4];
            *out++ = hex[c & 15];
        }
    }
    return out;
}

static char *filled(char *out, const char *template, const char *topic, const char *data, size_t length, escape_t escape)
{
    while (*template) {
        size_t plain = strcspn(template, "{");
        out = (char *)mempcpy(out, template, plain);
        template += plain;
        if (!strncmp(template, "{topic}", 7)) {
            out = stpcpy(out, topic);
            template += 7;
        } else if (!strncmp(template, "{data}", 6)) {
            out = escaped(out, data, length, escape);
            template += 6;
        } else if (*template) {
            *out++ = *template++;
        }
    }
    return out;
}

static char *make_request(char *out, const char *topic, const char *data, size_t length)
{
    static char body[256 * 1024];
    size_t bytes = (size_t)(filled(body, request.body, topic, data, length, request.escape) - body);
    out = filled(stpcpy(out, "POST "), request.target, topic, "", 0, RAW);
    out = stpcpy(stpcpy(out, " HTTP/1.1\r\nHost: 127.0.0.1\r\n"), request.head);
    out += sprintf(out, "Content-Length: %zu\r\n\r\n", bytes);
    return (char *)mempcpy(out, body, bytes);
}
