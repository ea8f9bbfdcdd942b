/* Drives a proxy (or emit itself) and measures, one thread, epoll. Prints one JSON object.
 *
 *   drive PORT stream C STREAMS TOKENS RATE SSE [DUMP]   C at a time, STREAMS in all; delay of each token = arrival − its stamp
 *   drive PORT leave  C STREAMS AFTER RATE DELAY         leave each stream after AFTER tokens (0: while it waits DELAY ms); ids and times
 *   drive PORT hold   C TOKENS RATE                      C streams at once, opened 1 ms apart; prints "open" when each has begun
 *   drive PORT request C SECONDS                         small POSTs on C kept connections
 *   drive PORT upload MEBIBYTES                          one POST with such a body
 *
 * DUMP: a file with a line "stream index emitted_ns arrived_ns" for each token. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

typedef struct stream {
    int fd, state, in_hash; /* state: 0 head, 1 chunk size, 2 chunk data, 3 CR LF after it, 4 the end */
    long id, next, tokens;
    int64_t asked, first_emit, first_arrival;
    uint64_t hash, hash_told;
    int told, bad;
    long size;
    size_t line_n, mark_n;
    char line[4096], mark[64]; /* the body's line of now (hash goes to its start), and a token text or hash being read */
    int left;
} stream;

static int ep, port;
static long errors, lost, altered, done, tokens_seen;
static double *delays, *ttfts;
static long delays_n, delays_cap, ttfts_n, ttfts_cap;
static FILE *dump;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
static void keep(double **a, long *n, long *cap, double v) {
    if (*n == *cap) *a = realloc(*a, (*cap = *cap ? *cap * 2 : 4096) * sizeof **a);
    (*a)[(*n)++] = v;
}
static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}
static double at(double *a, long n, double q) { return n ? a[(long)(q * (n - 1) + 0.5)] : -1; }

static int dial(void) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, (void *)&a, sizeof a)) {
        close(fd);
        return -1;
    }
    return fd;
}

static stream *begin(long id, long tokens, long rate, int sse, long delay) {
    stream *s = calloc(1, sizeof *s);
    s->id = id;
    s->tokens = tokens;
    s->hash = 14695981039346656037ull;
    if ((s->fd = dial()) < 0) {
        errors++;
        free(s);
        return NULL;
    }
    char ask[512], body[] = "{\"model\":\"bench\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"go\"}]}";
    int n = snprintf(ask, sizeof ask,
                     "POST %s?id=%ld&tokens=%ld&rate=%ld&delay=%ld HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: bench/%ld\r\n"
                     "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                     sse ? "/v1/chat/completions" : "/api/chat", id, tokens, rate, delay, port, id, sizeof body - 1, body);
    s->asked = now();
    if (send(s->fd, ask, n, MSG_NOSIGNAL) != n) errors++;
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = s};
    epoll_ctl(ep, EPOLL_CTL_ADD, s->fd, &e);
    return s;
}

/* One byte of the body: hashed up to the line that tells the hash, and searched for [index@ns] and #hash. */
static void body_byte(stream *s, char ch, int64_t t) {
    if (s->line_n < sizeof s->line) s->line[s->line_n++] = ch;
    if (ch == '[' || ch == '#') {
        s->mark_n = 0;
        s->mark[s->mark_n++] = ch;
    } else if (s->mark_n) {
        if (s->mark_n < sizeof s->mark - 1) s->mark[s->mark_n++] = ch;
        if (s->mark[0] == '[' && ch == ']') {
            long index;
            long long emitted;
            s->mark[s->mark_n] = 0;
            if (sscanf(s->mark, "[%ld@%lld]", &index, &emitted) == 2) {
                if (index != s->next) lost++;
                s->next = index + 1;
                tokens_seen++;
                if (!index) {
                    s->first_emit = emitted;
                    s->first_arrival = t;
                    keep(&ttfts, &ttfts_n, &ttfts_cap, (t - s->asked) / 1e3);
                }
                keep(&delays, &delays_n, &delays_cap, (t - emitted) / 1e3);
                if (dump) fprintf(dump, "%ld %ld %lld %lld\n", s->id, index, emitted, (long long)t);
            }
            s->mark_n = 0;
        } else if (s->mark[0] == '#' && s->mark_n == 17) {
            s->mark[17] = 0;
            s->hash_told = strtoull(s->mark + 1, NULL, 16);
            s->told = 1;
            s->mark_n = 0;
        }
    }
    if (ch == '\n') {
        if (s->told == 1) {
            if (s->hash_told != s->hash) altered++;
            s->told = 2;
        }
        if (!s->told)
            for (size_t i = 0; i < s->line_n; i++) s->hash = (s->hash ^ (unsigned char)s->line[i]) * 1099511628211ull;
        s->line_n = 0;
    }
}

static void feed(stream *s, const char *p, size_t n, int64_t t) {
    for (; n; p++, n--) switch (s->state) {
            case 0: /* head */
                if (s->line_n < sizeof s->line) s->line[s->line_n++] = *p;
                if (s->line_n >= 4 && !memcmp(s->line + s->line_n - 4, "\r\n\r\n", 4)) {
                    if (strncmp(s->line, "HTTP/1.1 200", 12)) errors++, s->bad = 1;
                    s->state = 1;
                    s->line_n = s->size = 0;
                }
                break;
            case 1: /* chunk size */
                if (*p == '\n') s->state = s->size ? 2 : 4;
                else if (*p != '\r') s->size = s->size * 16 + (*p <= '9' ? *p - '0' : (*p | 32) - 'a' + 10);
                if (s->state == 4) done++;
                break;
            case 2:
                body_byte(s, *p, t);
                if (!--s->size) s->state = 3;
                break;
            case 3:
                if (*p == '\n') s->state = 1;
                break;
            case 4: break;
        }
}

static void finish(stream *s) {
    if (s->state != 4) errors++;
    else if (s->told != 2) altered++;
    else if (s->next != s->tokens) lost++;
    close(s->fd);
    free(s);
}

static void summary(const char *mode, double elapsed, long streams) {
    qsort(delays, delays_n, sizeof *delays, by_value);
    qsort(ttfts, ttfts_n, sizeof *ttfts, by_value);
    printf("{\"mode\":\"%s\",\"streams\":%ld,\"done\":%ld,\"tokens\":%ld,\"errors\":%ld,\"lost\":%ld,\"altered\":%ld,\"elapsed_s\":%.3f,"
           "\"p50_us\":%.2f,\"p90_us\":%.2f,\"p99_us\":%.2f,\"p999_us\":%.2f,\"max_us\":%.2f,\"ttft_p50_us\":%.2f,\"ttft_p99_us\":%.2f}\n",
           mode, streams, done, tokens_seen, errors, lost, altered, elapsed, at(delays, delays_n, .5), at(delays, delays_n, .9),
           at(delays, delays_n, .99), at(delays, delays_n, .999), at(delays, delays_n, 1), at(ttfts, ttfts_n, .5), at(ttfts, ttfts_n, .99));
}

static int streams(int c, long total, long tokens, long rate, int sse, int hold) {
    static char buffer[1 << 18];
    long open = 0, begun = 0, all = hold ? c : total;
    int64_t t0 = now(), next = t0;
    while (open || begun < all) {
        while (begun < all && open < c && now() >= next) {
            if (begin(begun, tokens, rate, sse, 0)) open++;
            begun++;
            next += 1300000; /* not all at once: bursts would measure the listen queue */
            if (hold && begun == all) {
                printf("open\n");
                fflush(stdout);
            }
        }
        struct epoll_event ready[512];
        int n = epoll_wait(ep, ready, 512, begun < all && open < c ? 1 : -1);
        for (int i = 0; i < n; i++) {
            stream *s = ready[i].data.ptr;
            ssize_t k = recv(s->fd, buffer, sizeof buffer, MSG_DONTWAIT);
            int64_t t = now();
            if (k > 0) feed(s, buffer, k, t);
            if (k == 0 || (k < 0 && errno != EAGAIN) || s->state == 4) {
                finish(s);
                open--;
            }
        }
    }
    summary(hold ? "hold" : "stream", (now() - t0) / 1e9, all);
    return 0;
}

static int leave(int c, long total, long after, long rate, long delay) {
    static char buffer[1 << 16];
    long open = 0, begun = 0;
    int64_t next = now();
    while (open || begun < total) {
        while (begun < total && open < c && now() >= next) {
            if (begin(begun, 1000000, rate, 0, delay)) open++;
            begun++;
            next = now() + 7000000;
        }
        struct epoll_event ready[64];
        int n = epoll_wait(ep, ready, 64, 1);
        for (int i = 0; i < n; i++) {
            stream *s = ready[i].data.ptr;
            ssize_t k = recv(s->fd, buffer, sizeof buffer, MSG_DONTWAIT);
            if (k > 0) feed(s, buffer, k, now());
            if (k <= 0) errors++;
            if (k <= 0 || (after && s->next >= after)) {
                long id = s->id;
                int64_t t = now();
                close(s->fd);
                printf("closed %ld %lld\n", id, (long long)t);
                free(s);
                open--;
            }
        }
    }
    return 0;
}

static int wait_leave(long total, long delay) { /* leave during the wait for the first byte, one after the other */
    for (long id = 0; id < total; id++) {
        stream *s = begin(id, 1000000, 60, 0, delay);
        if (!s) continue;
        usleep(15000 + (id % 7) * 1000);
        int64_t t = now();
        close(s->fd);
        printf("closed %ld %lld\n", id, (long long)t);
        free(s);
    }
    return 0;
}

static int requests(int c, double seconds) {
    int *fds = calloc(c, sizeof *fds);
    int64_t *sent = calloc(c, sizeof *sent);
    char buffer[4096], ask[512], body[] = "{\"model\":\"bench\",\"stream\":false,\"prompt\":\"go\"}";
    int n = snprintf(ask, sizeof ask, "POST /api/show HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                     port, sizeof body - 1, body);
    for (int i = 0; i < c; i++) {
        if ((fds[i] = dial()) < 0) return fprintf(stderr, "drive: connect\n"), 1;
        struct epoll_event e = {.events = EPOLLIN, .data.u32 = i};
        epoll_ctl(ep, EPOLL_CTL_ADD, fds[i], &e);
        sent[i] = now();
        if (send(fds[i], ask, n, 0) != n) errors++;
    }
    int64_t t0 = now(), end = t0 + (int64_t)(seconds * 1e9);
    while (now() < end) {
        struct epoll_event ready[256];
        int k = epoll_wait(ep, ready, 256, 100);
        for (int i = 0; i < k; i++) {
            int j = ready[i].data.u32;
            ssize_t got = recv(fds[j], buffer, sizeof buffer, 0);
            if (got <= 0) return fprintf(stderr, "drive: connection lost\n"), 1;
            if (buffer[got - 1] != '}') continue;
            keep(&delays, &delays_n, &delays_cap, (now() - sent[j]) / 1e3);
            done++;
            sent[j] = now();
            if (send(fds[j], ask, n, 0) != n) errors++;
        }
    }
    double s = (now() - t0) / 1e9;
    qsort(delays, delays_n, sizeof *delays, by_value);
    printf("{\"mode\":\"request\",\"done\":%ld,\"errors\":%ld,\"per_s\":%.1f,\"p50_us\":%.2f,\"p99_us\":%.2f}\n", done, errors, done / s,
           at(delays, delays_n, .5), at(delays, delays_n, .99));
    return 0;
}

static int upload(long mib) {
    static char block[1 << 20];
    char head[256];
    int fd = dial();
    if (fd < 0) return fprintf(stderr, "drive: connect\n"), 1;
    int n = snprintf(head, sizeof head, "POST /api/blobs/sha256:0 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: %lld\r\n\r\n", port,
                     (long long)mib << 20);
    memset(block, 'x', sizeof block);
    int64_t t0 = now();
    if (send(fd, head, n, 0) != n) errors++;
    for (long i = 0; i < mib; i++)
        for (size_t k = 0; k < sizeof block;) {
            ssize_t got = send(fd, block + k, sizeof block - k, MSG_NOSIGNAL);
            if (got <= 0) return fprintf(stderr, "drive: upload cut\n"), 1;
            k += got;
        }
    ssize_t got = recv(fd, block, sizeof block, 0);
    printf("{\"mode\":\"upload\",\"mib\":%ld,\"elapsed_s\":%.3f,\"ok\":%s}\n", mib, (now() - t0) / 1e9,
           got > 12 && !strncmp(block, "HTTP/1.1 200", 12) ? "true" : "false");
    return 0;
}

int main(int argc, char **argv) {
    struct rlimit r;
    getrlimit(RLIMIT_NOFILE, &r);
    r.rlim_cur = r.rlim_max;
    setrlimit(RLIMIT_NOFILE, &r);
    signal(SIGPIPE, SIG_IGN);
    ep = epoll_create1(0);
    if (argc < 4) return fprintf(stderr, "drive PORT stream|leave|hold|request|upload …\n"), 2;
    port = atoi(argv[1]);
#define N(i) (argc > (i) ? atol(argv[i]) : 0)
    if (!strcmp(argv[2], "stream")) {
        if (argc > 8) dump = fopen(argv[8], "w");
        int code = streams(N(3), N(4), N(5), N(6), N(7), 0);
        if (dump) fclose(dump);
        return code;
    }
    if (!strcmp(argv[2], "hold")) return streams(N(3), N(3), N(4), N(5), 0, 1);
    if (!strcmp(argv[2], "leave")) return N(5) ? leave(N(3), N(4), N(5), N(6), 0) : wait_leave(N(4), N(7));
    if (!strcmp(argv[2], "request")) return requests(N(3), atof(argv[4]));
    if (!strcmp(argv[2], "upload")) return upload(N(3));
    return 2;
}
