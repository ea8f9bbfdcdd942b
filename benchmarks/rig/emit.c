/* A fake Ollama for measuring proxies: one thread, epoll, every token stamped with CLOCK_MONOTONIC as it is written.
 *
 *   POST /api/chat?id=I&tokens=N&rate=R     NDJSON, chunked, one write a record; the first token at once. The last record bears
 *                                           the FNV-1a hash of all bytes of the body before it.
 *   POST /v1/chat/completions?…             the same as server-sent events, ended by [DONE]; the hash is in the chunk before it.
 *   anything else                           a small JSON answer, after the whole body was read.
 *
 * A token's text is a word; beside it stands a mark, [index@nanoseconds]. Clients that leave before the end are logged: "left I nanoseconds". */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define HEAD_MAX 65536
typedef struct conn {
    int fd, heap; /* heap: place in the timer heap, -1 when not in it */
    long id, tokens, sent;
    int64_t start, period, due;
    int streaming, sse, want_write;
    uint64_t hash;
    int64_t body_left;
    int chunked_body, tail;
    size_t got;
    char *out; /* what the kernel did not take yet */
    size_t out_len;
    char head[HEAD_MAX];
} conn;

static int ep, timer;
static conn **heap;
static int heap_n, heap_cap;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void heap_swap(int a, int b) {
    conn *c = heap[a];
    heap[a] = heap[b];
    heap[b] = c;
    heap[a]->heap = a;
    heap[b]->heap = b;
}
static void heap_up(int i) {
    for (; i > 0 && heap[i]->due < heap[(i - 1) / 2]->due; i = (i - 1) / 2) heap_swap(i, (i - 1) / 2);
}
static void heap_down(int i) {
    for (;;) {
        int least = i, l = 2 * i + 1;
        if (l < heap_n && heap[l]->due < heap[least]->due) least = l;
        if (l + 1 < heap_n && heap[l + 1]->due < heap[least]->due) least = l + 1;
        if (least == i) return;
        heap_swap(i, least);
        i = least;
    }
}
static void heap_push(conn *c) {
    if (heap_n == heap_cap) heap = realloc(heap, (heap_cap = heap_cap ? heap_cap * 2 : 64) * sizeof *heap);
    heap[heap_n] = c;
    c->heap = heap_n++;
    heap_up(c->heap);
}
static void heap_remove(conn *c) {
    int i = c->heap;
    if (i < 0) return;
    c->heap = -1;
    if (i != --heap_n) {
        heap[i] = heap[heap_n];
        heap[i]->heap = i;
        heap_up(i);
        heap_down(i);
    }
}
static void arm(void) {
    struct itimerspec t = {0};
    if (heap_n) {
        int64_t due = heap[0]->due < 1 ? 1 : heap[0]->due;
        t.it_value.tv_sec = due / 1000000000;
        t.it_value.tv_nsec = due % 1000000000;
    }
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &t, NULL);
}

static void drop(conn *c) {
    if (c->streaming) {
        printf("left %ld %lld\n", c->id, (long long)now());
        fflush(stdout);
    }
    heap_remove(c);
    close(c->fd);
    free(c->out);
    free(c);
}

static int put(conn *c, const char *data, size_t n) {
    if (!c->out_len) {
        ssize_t k = send(c->fd, data, n, MSG_NOSIGNAL);
        if (k == (ssize_t)n) return 0;
        if (k < 0) {
            if (errno != EAGAIN) return -1;
            k = 0;
        }
        data += k;
        n -= k;
    }
    c->out = realloc(c->out, c->out_len + n);
    memcpy(c->out + c->out_len, data, n);
    c->out_len += n;
    if (!c->want_write) {
        struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
        epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
        c->want_write = 1;
    }
    return 0;
}

static uint64_t fnv(uint64_t h, const char *p, size_t n) {
    while (n--) h = (h ^ (unsigned char)*p++) * 1099511628211ull;
    return h;
}

static int record(conn *c, const char *body, size_t n) {
    char frame[1024];
    int k = snprintf(frame, sizeof frame, "%zx\r\n", n);
    memcpy(frame + k, body, n);
    memcpy(frame + k + n, "\r\n", 2);
    c->hash = fnv(c->hash, body, n);
    return put(c, frame, k + n + 2);
}

/* What is said is prose-like and never the same twice: what a proxy looks at costs it what real traffic would. */
static const char *word(const conn *c) {
    static const char *words[] = {"the", "file", "returns", "a", "value", "when", "every", "test", "of", "this", "module", "has", "run",
                                  "and", "then", "we", "should", "check", "whether", "its", "index", "is", "still", "valid", "before",
                                  "writing", "it", "back", "to", "disk", "because", "another", "thread", "may", "have", "changed", "that",
                                  "list", "while", "our", "lock", "was", "not", "held", "which", "explains", "why", "only", "some",
                                  "requests", "fail", "under", "load", "in", "practice", "so", "let", "me", "look", "at", "where", "they",
                                  "start", "first"};
    uint64_t x = ((uint64_t)c->id << 32 | (uint64_t)c->sent) + 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return words[(x ^ (x >> 31)) % (sizeof words / sizeof *words)];
}

static int token(conn *c) {
    char body[512];
    int n;
    if (c->sent == 0) {
        static const char *types[] = {"application/x-ndjson", "text/event-stream"};
        char head[256];
        int k = snprintf(head, sizeof head,
                         "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nDate: Mon, 23 Nov 2026 08:02:22 GMT\r\n"
                         "Transfer-Encoding: chunked\r\n\r\n",
                         types[c->sse]);
        if (put(c, head, k)) return -1;
    }
    if (c->sent < c->tokens) {
        if (c->sse)
            n = snprintf(body, sizeof body,
                         "data: {\"id\":\"chatcmpl-%ld\",\"object\":\"chat.completion.chunk\",\"created\":1787306401,"
                         "\"model\":\"bench\",\"system_fingerprint\":\"fp_ollama\",\"choices\":[{\"index\":0,\"delta\":{\"content\":"
                         "\" %s\"},\"finish_reason\":null}],\"mark\":\"[%ld@%lld]\"}\n\n",
                         c->id, word(c), c->sent, (long long)now());
        else
            n = snprintf(body, sizeof body,
                         "{\"model\":\"bench\",\"created_at\":\"2026-11-23T08:02:22.650390161Z\",\"message\":{\"role\":"
                         "\"assistant\",\"content\":\" %s\"},\"done\":false,\"mark\":\"[%ld@%lld]\"}\n",
                         word(c), c->sent, (long long)now());
        if (record(c, body, n)) return -1;
        c->sent++;
        c->due = c->start + c->sent * c->period;
        return 0;
    }
    unsigned long long h = c->hash;
    if (c->sse)
        n = snprintf(body, sizeof body,
                     "data: {\"id\":\"chatcmpl-%ld\",\"object\":\"chat.completion.chunk\",\"created\":1787306401,\"model\":\"bench\","
                     "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}],\"hash\":\"#%016llx\"}\n\ndata: [DONE]\n\n",
                     c->id, h);
    else
        n = snprintf(body, sizeof body,
                     "{\"model\":\"bench\",\"created_at\":\"2026-11-23T08:02:22Z\",\"message\":{\"role\":\"assistant\",\"content\":\"\"},"
                     "\"done\":true,\"done_reason\":\"stop\",\"total_duration\":%lld,\"load_duration\":1000000,"
                     "\"prompt_eval_count\":10,\"prompt_eval_duration\":1000000,\"eval_count\":%ld,\"eval_duration\":%lld,\"hash\":\"#%016llx\"}\n",
                     (long long)(now() - c->start), c->tokens, (long long)(c->period * (c->tokens - 1) + 1), h);
    if (record(c, body, n) || put(c, "0\r\n\r\n", 5)) return -1;
    c->streaming = 0;
    heap_remove(c);
    return 0;
}

static long query(const char *line, const char *name, long otherwise) {
    const char *p = strstr(line, name);
    return p ? atol(p + strlen(name)) : otherwise;
}

static int answer(conn *c) {
    char line[512];
    size_t n = strcspn(c->head, "\r\n");
    if (n >= sizeof line) n = sizeof line - 1;
    memcpy(line, c->head, n);
    line[n] = 0;
    c->sse = strstr(line, "/v1/") != NULL;
    if (!strstr(line, "tokens=")) {
        static const char small[] =
            "HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: 17\r\n\r\n{\"version\":\"0.0\"}";
        return put(c, small, sizeof small - 1);
    }
    c->id = query(line, "id=", 0);
    c->tokens = query(line, "tokens=", 100);
    long delay_ms = query(line, "delay=", 0), rate = query(line, "rate=", 60);
    c->period = rate > 0 ? 1000000000 / rate : 0;
    c->sent = 0;
    c->hash = 14695981039346656037ull;
    c->start = now() + delay_ms * 1000000;
    c->due = c->start;
    c->streaming = 1;
    heap_push(c);
    return 0;
}

/* The request's bytes: head, then a body by length or chunks, which is read and thrown away. */
static int take(conn *c, const char *p, size_t n) {
    while (n) {
        if (c->body_left > 0) {
            size_t k = (int64_t)n < c->body_left ? n : (size_t)c->body_left;
            c->body_left -= k;
            p += k;
            n -= k;
            if (!c->body_left && answer(c)) return -1;
            continue;
        }
        if (c->chunked_body) {
            static const char end[] = "0\r\n\r\n";
            c->tail = *p == end[c->tail] ? c->tail + 1 : *p == '0';
            p++;
            n--;
            if (c->tail == 5) {
                c->chunked_body = c->tail = 0;
                if (answer(c)) return -1;
            }
            continue;
        }
        size_t k = n < HEAD_MAX - 1 - c->got ? n : HEAD_MAX - 1 - c->got;
        if (!k) return -1;
        size_t from = c->got > 3 ? c->got - 3 : 0;
        memcpy(c->head + c->got, p, k);
        c->got += k;
        c->head[c->got] = 0;
        char *end = memmem(c->head + from, c->got - from, "\r\n\r\n", 4);
        if (!end) {
            p += k;
            n -= k;
            continue;
        }
        size_t over = c->got - (end + 4 - c->head);
        p += k - over;
        n -= k - over;
        c->got = 0;
        *end = 0;
        char *length = strcasestr(c->head, "content-length:");
        c->body_left = length ? atoll(length + 15) : 0;
        c->chunked_body = strcasestr(c->head, "transfer-encoding: chunked") != NULL;
        if (!c->body_left && !c->chunked_body && answer(c)) return -1;
    }
    return 0;
}

int main(int argc, char **argv) {
    int one = 1, port = argc > 1 ? atoi(argv[1]) : 0;
    signal(SIGPIPE, SIG_IGN);
    struct rlimit r;
    getrlimit(RLIMIT_NOFILE, &r);
    r.rlim_cur = r.rlim_max;
    setrlimit(RLIMIT_NOFILE, &r);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&a, sizeof a) || listen(listener, 4096)) return perror("emit: listen"), 1;
    getsockname(listener, (void *)&a, &len);
    printf("port %d\n", ntohs(a.sin_port));
    fflush(stdout);
    ep = epoll_create1(0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &listener};
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &e);
    e.data.ptr = &timer;
    epoll_ctl(ep, EPOLL_CTL_ADD, timer, &e);
    static char buffer[1 << 18];
    for (;;) {
        struct epoll_event ready[256];
        int n = epoll_wait(ep, ready, 256, -1);
        for (int i = 0; i < n; i++) {
            if (ready[i].data.ptr == &timer) {
                uint64_t ticks;
                if (read(timer, &ticks, 8) < 0) ticks = 0;
                continue;
            }
            if (ready[i].data.ptr == &listener) {
                int fd;
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    conn *c = calloc(1, sizeof *c);
                    c->fd = fd;
                    c->heap = -1;
                    e.events = EPOLLIN;
                    e.data.ptr = c;
                    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
                }
                continue;
            }
            conn *c = ready[i].data.ptr;
            if (ready[i].events & EPOLLOUT && c->out_len) {
                ssize_t k = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL);
                if (k > 0) {
                    memmove(c->out, c->out + k, c->out_len - k);
                    c->out_len -= k;
                }
                if (!c->out_len) {
                    e.events = EPOLLIN;
                    e.data.ptr = c;
                    epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
                    c->want_write = 0;
                }
            }
            if (ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
                ssize_t k = recv(c->fd, buffer, sizeof buffer, 0);
                if (k == 0 || (k < 0 && errno != EAGAIN) || (k > 0 && take(c, buffer, k))) drop(c);
            }
        }
        int64_t t = now();
        while (heap_n && heap[0]->due <= t) {
            conn *c = heap[0];
            if (token(c)) drop(c);
            else if (c->heap >= 0) heap_down(c->heap);
        }
        arm();
    }
}
