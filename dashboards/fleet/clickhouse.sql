-- Views over the Collector's otel_traces: who is fast, what was slow, what went wrong where. Attribute values are text there.
-- Traces with findings, errors and long ones are all kept, of the rest one in ten (collector.yaml): counts of findings are whole,
-- shares and medians are not. For those ask Prometheus, which is never sampled.

CREATE OR REPLACE VIEW qm_operations AS
SELECT
    Timestamp AS at,
    TraceId AS trace_id,
    ResourceAttributes['host.name'] AS host,
    SpanAttributes['gen_ai.request.model'] AS model,
    SpanAttributes['qm.client'] AS client,
    SpanAttributes['qm.origin'] AS origin,
    SpanAttributes['qm.session.id'] AS session,
    SpanAttributes['qm.exchange.id'] AS exchange,
    SpanAttributes['qm.ending'] AS ending,
    SpanAttributes['qm.slow_because'] AS slow_because,
    Duration / 1e9 AS total_s,
    toFloat64OrNull(SpanAttributes['gen_ai.response.time_to_first_chunk']) AS ttft_s,
    toUInt64OrNull(SpanAttributes['gen_ai.usage.input_tokens']) AS input_tokens,
    toUInt64OrNull(SpanAttributes['gen_ai.usage.output_tokens']) AS output_tokens,
    if(output_tokens > 1 AND total_s > ttft_s, (output_tokens - 1) / (total_s - ttft_s), NULL) AS tokens_per_s,
    toFloat64OrNull(SpanAttributes['qm.itl.p50']) AS itl_p50_s,
    toFloat64OrNull(SpanAttributes['qm.itl.p99']) AS itl_p99_s,
    JSONExtract(SpanAttributes['qm.itl.hist'], 'Array(UInt64)') AS itl_hist,
    ifNull(toUInt32OrNull(SpanAttributes['qm.tool_calls']), 0) AS tool_calls,
    JSONExtract(SpanAttributes['qm.findings'], 'Array(String)') AS findings,
    StatusCode = 'Error' AS failed
FROM otel_traces
WHERE ServiceName = 'qm-proxy' AND SpanKind = 'Client' AND SpanAttributes['gen_ai.operation.name'] != '';

-- One row for each finding, with its words.
CREATE OR REPLACE VIEW qm_findings AS
SELECT
    event_at AS at,
    TraceId AS trace_id,
    ResourceAttributes['host.name'] AS host,
    SpanAttributes['gen_ai.request.model'] AS model,
    SpanAttributes['qm.client'] AS client,
    SpanAttributes['qm.origin'] AS origin,
    SpanAttributes['qm.exchange.id'] AS exchange,
    event['qm.finding'] AS kind,
    event['qm.severity'] AS severity,
    event['qm.summary'] AS summary,
    toUInt64OrNull(event['qm.tokens_wasted']) AS tokens_wasted
FROM otel_traces
ARRAY JOIN Events.Timestamp AS event_at, Events.Name AS event_name, Events.Attributes AS event
WHERE ServiceName = 'qm-proxy' AND event_name = 'qm.finding';

CREATE OR REPLACE VIEW qm_findings_by_host_model AS
SELECT host, model, kind, severity, count() AS found, uniqExact(exchange) AS exchanges, sum(tokens_wasted) AS tokens_wasted,
       max(at) AS last
FROM qm_findings
WHERE origin != 'probe'
GROUP BY host, model, kind, severity
ORDER BY found DESC, host, model, kind;

-- The league table: one row for each model and host.
CREATE OR REPLACE VIEW qm_league AS
SELECT
    model,
    host,
    count() AS operations,
    quantile(0.5)(ttft_s) AS ttft_p50_s,
    quantile(0.95)(ttft_s) AS ttft_p95_s,
    quantile(0.5)(tokens_per_s) AS tokens_per_s_p50,
    quantile(0.5)(itl_p99_s) AS itl_p99_s,
    sum(output_tokens) AS tokens_out,
    sum(tool_calls) AS calls,
    countIf(arrayExists(f -> startsWith(f, 'tool.'), findings)) AS with_tool_faults,
    countIf(arrayExists(f -> startsWith(f, 'loop.'), findings)) AS with_loops,
    countIf(has(findings, 'stall')) AS with_stalls,
    countIf(failed) AS failures
FROM qm_operations
WHERE origin != 'probe'
GROUP BY model, host
ORDER BY tokens_per_s_p50 DESC, model, host;

CREATE OR REPLACE VIEW qm_slowest AS
SELECT at, host, model, client, total_s, ttft_s, input_tokens, output_tokens, slow_because, findings, trace_id, exchange
FROM qm_operations
WHERE origin != 'probe'
ORDER BY total_s DESC;

-- Gaps of a whole fleet: bucket i counts gaps below 2^i µs. Buckets add up, quantiles do not.
CREATE OR REPLACE VIEW qm_gaps AS
SELECT model, host, sumForEach(itl_hist) AS gaps, arraySum(gaps) AS n,
       arrayFirstIndex(c -> c >= 0.5 * n, arrayCumSum(gaps)) - 1 AS p50_bucket, pow(2, p50_bucket) / 1e6 AS p50_below_s,
       arrayFirstIndex(c -> c >= 0.99 * n, arrayCumSum(gaps)) - 1 AS p99_bucket, pow(2, p99_bucket) / 1e6 AS p99_below_s
FROM qm_operations
WHERE notEmpty(itl_hist) AND origin != 'probe'
GROUP BY model, host;
