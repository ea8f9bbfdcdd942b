"""What a request asks: every dialect, every shape that real clients send, and everything that is none."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from qm_proxy.events import Asked, Message, Nanoseconds, OfferedTool, PastCall
from qm_proxy.wire.http import Headers
from qm_proxy.wire.request import is_remote, read_request
from qm_proxy.wire.routes import route_of

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
PICTURE = b"\x89PNG not really"
PICTURE_64 = base64.b64encode(PICTURE).decode()
DIGEST = hashlib.sha256(PICTURE).hexdigest()


def ask(path: str, body: object, headers: Headers = ()) -> Asked:
    raw = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    return read_request(route_of("POST", path.encode()), headers, raw, Nanoseconds(1))


def chat(*messages: dict[str, Any], **more: Any) -> Asked:
    return ask("/v1/chat/completions", {"model": "m", "messages": messages, **more})


def native(*messages: dict[str, Any], **more: Any) -> Asked:
    return ask("/api/chat", {"model": "m", "messages": messages, **more})


def responses(*items: Any, **more: Any) -> Asked:
    return ask("/v1/responses", {"model": "m", "input": list(items), **more})


def anthropic(*messages: dict[str, Any], **more: Any) -> Asked:
    return ask("/v1/messages", {"model": "m", "max_tokens": 5, "messages": messages, **more})


# --- defaults and limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "stream", "expected"),
    [
        ("/api/chat", None, True),
        ("/api/generate", None, True),
        ("/api/chat", False, False),
        ("/v1/chat/completions", None, False),
        ("/v1/messages", True, True),
        ("/v1/responses", None, False),
        ("/api/chat", "yes", True),
        ("/api/embed", None, False),
    ],
)
def test_22_stream_default_per_route(path: str, stream: object, expected: bool) -> None:
    assert ask(path, {"model": "m"} if stream is None else {"model": "m", "stream": stream}).streamed is expected


def test_the_limit_that_the_dialects_server_obeys() -> None:
    assert native(options={"num_predict": 40}, max_tokens=7).max_output_tokens == 40
    assert native(options={"num_predict": -1}).max_output_tokens is None
    assert native(max_tokens=7).max_output_tokens is None
    assert chat(max_tokens=5, max_completion_tokens=9).max_output_tokens == 5
    assert chat(max_completion_tokens=9).max_output_tokens == 9
    assert responses(max_output_tokens=3).max_output_tokens == 3
    assert anthropic().max_output_tokens == 5
    assert chat(max_tokens=True).max_output_tokens is None
    assert chat(max_tokens="5").max_output_tokens is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"think": True}, "true"),
        ({"think": "low"}, "low"),
        ({"reasoning_effort": "high"}, "high"),
        ({"reasoning": {"effort": "low"}}, "low"),
        ({"reasoning": {"enabled": False}}, "false"),
        ({"reasoning": {}}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "true"),
        ({"thinking": {"type": "disabled"}}, "false"),
        ({"thinking": {"type": "adaptive"}}, "adaptive"),
        ({"output_config": {"effort": "medium"}}, "medium"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "false"),
        ({"thinking": {}, "output_config": {}, "chat_template_kwargs": {}}, None),
        ({"thinking": 5, "reasoning": "x"}, None),
    ],
)
def test_thinking(fields: dict[str, Any], expected: str | None) -> None:
    assert chat(**fields).thinking == expected


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", "auto"),
        ("any", "required"),
        ("", None),
        ({"type": "function", "function": {"name": "f"}}, "f"),
        ({"type": "function", "name": "f"}, "f"),
        ({"type": "custom", "custom": {"name": "c"}}, "c"),
        ({"type": "tool", "name": "f"}, "f"),
        ({"type": "any"}, "required"),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "allowed_tools", "mode": "required", "tools": []}, "required"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}, "auto"),
        ({"type": "file_search"}, "file_search"),
        ({}, None),
        (7, None),
    ],
)
def test_tool_choice(choice: object, expected: str | None) -> None:
    assert chat(tool_choice=choice).tool_choice == expected


def test_the_former_function_call_is_a_choice_too() -> None:
    assert chat(function_call={"name": "f"}).tool_choice == "f"


def test_options_by_their_wire_names() -> None:
    found = native(
        options={"num_ctx": 8192, "temperature": 0, "stop": ["a"]}, keep_alive="10m", truncate=False, shift=True, format="json"
    )
    assert found.options == {"num_ctx": 8192, "temperature": 0, "stop": ["a"], "truncate": False, "shift": True, "format": "json"}
    assert found.keep_alive == "10m"
    assert native(keep_alive=0).keep_alive == "0"
    openai = chat(
        temperature=1.0, stream_options={"include_usage": True}, response_format={"type": "json_object"}, user="someone"
    )
    assert openai.options == {"temperature": 1.0, "stream_options": {"include_usage": True}, "response_format": "json_object"}


def test_what_the_routes_server_does_not_read_is_no_option() -> None:
    """Ollama ignores `options`, `keep_alive` and `shift` on /v1: a reload must not be blamed on them."""
    asked = chat(options={"num_ctx": 8192}, keep_alive=0, shift=False, truncate=False, seed=1)
    assert (asked.options, asked.keep_alive) == ({"seed": 1}, None)
    assert native(temperature=0.5, options={"seed": 1}).options == {"seed": 1}


def test_nothing_large_becomes_an_option() -> None:
    found = native(options={"x": "a" * 5000, "y": list(range(100)), "z": {"a": "b" * 2000}, "ok": 1}, format=SCHEMA)
    assert found.options == {"ok": 1, "format": "schema"}
    assert native(options="odd").options is None


# --- histories --------------------------------------------------------------------------------------------------------


def test_33_call_and_result_in_all_four_dialects() -> None:
    """One call and its result, as each protocol carries them: the same history."""
    call = PastCall("c1", "f", '{"city":"Paris"}')
    user, result = Message("user", "w?"), Message("tool", "22C", call_id="c1")
    function = {"name": "f", "arguments": {"city": "Paris"}}
    text = {"name": "f", "arguments": '{"city":"Paris"}'}
    histories = [
        native(
            {"role": "user", "content": "w?"},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "function": function}]},
            {"role": "tool", "content": "22C", "tool_call_id": "c1"},
        ),
        chat(
            {"role": "user", "content": "w?"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": text}]},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "22C"}]},
        ),
        responses(
            {"role": "user", "content": [{"type": "input_text", "text": "w?"}]},
            {"type": "function_call", "call_id": "c1", **text},
            {"type": "function_call_output", "call_id": "c1", "output": "22C"},
        ),
        anthropic(
            {"role": "user", "content": "w?"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {"city": "Paris"}}]},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "22C"}]}],
            },
        ),
    ]
    for asked in histories:
        assert asked.messages == (user, Message("assistant", calls=(call,)), result)
        assert asked.problems == ()


def test_33_native_results_pair_by_name() -> None:
    asked = native({"role": "tool", "content": "22C", "tool_name": "f"})
    assert asked.messages == (Message("tool", "22C", tool_name="f"),)


def test_argument_key_order_is_kept() -> None:
    asked = native(
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "f", "arguments": {"b": 1, "a": {"d": 2, "c": 3}}}}],
        }
    )
    assert asked.messages[0].calls[0].arguments == '{"b":1,"a":{"d":2,"c":3}}'


def test_arguments_with_whole_numbers_beyond_64_bits() -> None:
    huge = 10**30
    asked = native({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"n": huge}}}]})
    assert float(json.loads(asked.messages[0].calls[0].arguments)["n"]) == float(huge)


def test_openai_odds_and_ends() -> None:
    asked = chat(
        {"role": "developer", "content": "d"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "text", "text": "b"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE_64}"}},
            ],
        },
        {"role": "assistant", "content": "x", "reasoning_content": "hm", "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "r"},
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": [{"type": "text", "text": "t"}]}, {"type": "refusal", "refusal": "no"}],
        },
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "p", "input": "raw"}}, 7, {"id": "d"}],
        },
        {"role": "user", "content": 5},
        {"content": "nobody"},
    )
    assert asked.messages == (
        Message("developer", "d"),
        Message("user", "a\nb", media=(DIGEST,)),
        Message("assistant", "x", "hm", (PastCall("", "f", "{}"),)),
        Message("tool", "r", tool_name="f"),
        Message("assistant", "no", "t"),
        Message("assistant", calls=(PastCall("c", "p", "raw"),)),
        Message("user"),
        Message("", "nobody"),
    )


def test_anthropic_blocks_keep_their_order() -> None:
    asked = anthropic(
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "is_error": True, "content": "bad"},
                {"type": "tool_result", "tool_use_id": "b"},
                {"type": "text", "text": "go on"},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "let me"},
                {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"q": 1}},
                {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [{"type": "web_search_result"}]},
                {"type": "text", "text": "so"},
                {"type": "redacted_thinking", "data": "x"},
                "odd",
            ],
        },
        {"role": "assistant", "content": []},
        system=[{"type": "text", "text": "one"}, {"type": "text", "text": "two", "cache_control": {}}],
    )
    assert asked.messages == (
        Message("system", "one\ntwo"),
        Message("tool", "bad", call_id="a", is_error=True),
        Message("tool", call_id="b"),
        Message("user", "go on"),
        Message("assistant", "let me", "hm", (PastCall("s1", "web_search", '{"q":1}'),)),
        Message("tool", call_id="s1"),
        Message("assistant", "so"),
        Message("assistant"),
    )


def test_a_system_text() -> None:
    assert anthropic(system="be good").messages == (Message("system", "be good"),)


def test_responses_items_of_one_turn_are_one_message() -> None:
    asked = responses(
        {"type": "message", "role": "user", "content": "hi"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "let me"}]},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "b", "name": "p", "input": "raw"},
        {
            "type": "function_call_output",
            "call_id": "a",
            "output": [{"type": "input_text", "text": "r"}, {"type": "input_image", "image_url": f"data:;base64,{PICTURE_64}"}],
        },
        {"type": "custom_tool_call_output", "call_id": "b", "output": {"x": 1}},
        {"type": "local_shell_call", "id": "l", "action": {"command": ["ls"]}},
        {"type": "local_shell_call_output", "id": "l", "output": "a.py"},
        {"type": "reasoning", "encrypted_content": "x", "summary": []},
        {"type": "message", "role": "assistant", "content": "done"},
        {"type": "message", "role": "assistant", "content": "really"},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "more"}]},
        {"type": "web_search_call", "id": "w", "action": {"query": "q"}},
        {"type": "item_reference", "id": "x"},
        {"type": "new_kind"},
        instructions="be good",
        previous_response_id="resp_1",
    )
    assert asked.messages == (
        Message("system", "be good"),
        Message("user", "hi"),
        Message("assistant", "let me", "hm", (PastCall("a", "f", "{}"), PastCall("b", "p", "raw"))),
        Message("tool", "r", call_id="a", media=(DIGEST,)),
        Message("tool", '{"x":1}', call_id="b"),
        Message("assistant", calls=(PastCall("l", "local_shell", '{"command":["ls"]}'),)),
        Message("tool", "a.py", call_id="l"),
        Message("assistant", "done"),
        Message("assistant", "really"),
        Message("assistant", thinking="more", calls=(PastCall("w", "web_search", '{"query":"q"}'),)),
    )
    assert asked.previous_response_id == "resp_1"


def test_reasoning_that_says_nothing_begins_no_second_turn() -> None:
    call = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
    asked = responses({"role": "assistant", "content": "x"}, {"type": "reasoning", "summary": []}, call)
    assert asked.messages == (Message("assistant", "x", calls=(PastCall("a", "f", "{}"),)),)


def test_contents_as_bare_texts_and_calls_that_are_none() -> None:
    asked = chat({"role": "user", "content": ["a", "b"]}, {"role": "assistant", "content": "c", "tool_calls": "odd"})
    assert asked.messages == (Message("user", "a\nb"), Message("assistant", "c"))


def test_responses_with_a_text() -> None:
    assert ask("/v1/responses", {"model": "m", "input": "hi"}).messages == (Message("user", "hi"),)


def test_completions() -> None:
    asked = ask(
        "/api/generate", {"model": "m", "system": "s", "prompt": "p", "images": [PICTURE_64, 5], "suffix": "end", "raw": True}
    )
    assert asked.messages == (Message("system", "s"), Message("user", "p", media=(DIGEST,)))
    assert asked.options == {"raw": True, "suffix": True}
    assert ask("/v1/completions", {"model": "m", "prompt": ["a", "b", [1, 2]]}).messages == (Message("user", "a\nb"),)
    assert ask("/api/generate", {"model": "m"}).messages == ()
    assert ask("/api/embed", {"model": "m", "input": ["a"]}).messages == ()


def test_media_in_every_shape() -> None:
    address = hashlib.sha256(b"https://x/y.png").hexdigest()
    audio = {"type": "input_audio", "input_audio": {"data": PICTURE_64, "format": "wav"}}
    assert chat(
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": "https://x/y.png"},
                audio,
                {"type": "file", "file": {"file_data": PICTURE_64}},
            ],
        }
    ).messages[0].media == (address, DIGEST, DIGEST)
    source = {"type": "base64", "media_type": "image/png", "data": PICTURE_64}
    blocks = [
        {"type": "image", "source": source},
        {"type": "document", "source": {"type": "text", "data": "plain"}},
        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
        {"type": "image"},
    ]
    asked = anthropic({"role": "user", "content": blocks})
    assert asked.messages == (Message("user", "plain", media=(DIGEST, address)),)
    assert native({"role": "user", "content": "x", "images": [PICTURE_64]}).messages[0].media == (DIGEST,)
    result = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image", "source": source}]}
    assert anthropic({"role": "user", "content": [result]}).messages[0].media == (DIGEST,)
    assert responses(
        {
            "role": "user",
            "content": [{"type": "input_file", "file_id": "file-1"}, {"type": "input_image", "file_id": "file-2"}, "odd"],
        }
    ).messages[0].media == (
        hashlib.sha256(b"file-1").hexdigest(),
        hashlib.sha256(b"file-2").hexdigest(),
    )
    assert native({"role": "user", "images": ["é no base64"]}).messages[0].media == (
        hashlib.sha256("é no base64".encode()).hexdigest(),
    )


# --- tools ------------------------------------------------------------------------------------------------------------


def test_tools_in_every_shape() -> None:
    schema = json.dumps(SCHEMA, separators=(",", ":")).encode()
    nested = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}}
    assert chat(tools=[nested]).tools == native(tools=[nested]).tools == (OfferedTool("f", "function", schema, True),)
    flat = [
        {"type": "function", "name": "f", "description": None, "parameters": SCHEMA, "strict": False},
        {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}},
        {"type": "local_shell"},
        {"type": "web_search"},
        {"type": "mcp", "server_label": "docs", "server_url": "https://x"},
        {
            "type": "namespace",
            "name": "ns",
            "tools": [
                {"type": "function", "name": "a", "parameters": SCHEMA},
                {"type": "namespace", "name": "deep", "tools": [{"type": "function", "name": "b"}]},
            ],
        },
    ]
    assert responses(tools=flat).tools == (
        OfferedTool("f", "function", schema, False),
        OfferedTool("apply_patch", "custom"),
        OfferedTool("local_shell", "local_shell"),
        OfferedTool("web_search", "web_search"),
        OfferedTool("docs", "mcp"),
        OfferedTool("ns.a", "function", schema),
        OfferedTool("ns.deep.b", "function"),
    )
    theirs = [
        {"name": "Bash", "description": "d", "input_schema": SCHEMA},
        {"type": "custom", "name": "Edit", "input_schema": SCHEMA},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 3},
        {"type": "bash_20250124", "name": "bash"},
    ]
    assert anthropic(tools=theirs).tools == (
        OfferedTool("Bash", "function", schema),
        OfferedTool("Edit", "function", schema),
        OfferedTool("web_search", "web_search_20250305"),
        OfferedTool("bash", "bash_20250124"),
    )
    custom = {"type": "custom", "custom": {"name": "c"}}
    assert chat(tools=[custom], functions=[{"name": "old", "parameters": SCHEMA}]).tools == (
        OfferedTool("c", "custom"),
        OfferedTool("old", "function", schema),
    )


def test_a_schema_stays_the_bytes_that_were_sent() -> None:
    raw = b'{"model":"m","messages":[],"tools":[{"type":"function","function":{"name":"f","parameters":{ "b" : 1,\n"a":1e2 }}}]}'
    assert ask("/api/chat", raw).tools[0].parameters == b'{ "b" : 1,\n"a":1e2 }'


def test_an_odd_tool_costs_only_itself() -> None:
    asked = chat(tools=[{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": "odd"}, 7])
    assert [tool.name for tool in asked.tools] == ["f"]
    assert len(asked.problems) == 2
    assert chat(tools={"a": 1}).problems == ("tools is no list",)
    assert chat(tools=None).tools == ()


def test_namespaces_without_end_are_bounded() -> None:
    tool: dict[str, Any] = {"type": "function", "name": "leaf"}
    for _ in range(50):
        tool = {"type": "namespace", "name": "n", "tools": [tool]}
    assert responses(tools=[tool]).tools == ()


# --- codings, hints, nonsense -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("coding", "encode"), [(b"zstd", zstandard.ZstdCompressor().compress), (b"gzip", gzip.compress)])
def test_04_coded_bodies_are_read_from_a_decoded_copy(coding: bytes, encode: Any) -> None:
    raw = encode(b'{"model":"m","input":"hi"}')
    asked = ask("/v1/responses", raw, ((b"Content-Encoding", coding),))
    assert (asked.model, asked.messages, asked.problems) == ("m", (Message("user", "hi"),), ())
    assert asked.body_bytes == len(raw)
    torn = ask("/v1/responses", raw[:-5], ((b"content-encoding", coding),))
    assert torn.model is None
    assert torn.problems


def test_an_unknown_coding_is_a_problem() -> None:
    assert "snappy" in ask("/api/chat", b"x", ((b"Content-Encoding", b"snappy"),)).problems[0]


def test_hints_name_sessions_and_never_persons() -> None:
    user = json.dumps({"device_id": "d", "account_uuid": "a", "session_id": "s-1"})
    assert anthropic(metadata={"user_id": user}).hints == {"metadata.user_id": "s-1"}
    older = "user_ab12_account_cd34_session_058c83e0-1be0-4514-afcb-d0262eec13b0"
    assert anthropic(metadata={"user_id": older}).hints == {"metadata.user_id": "058c83e0-1be0-4514-afcb-d0262eec13b0"}
    assert anthropic(metadata={"user_id": "jane@example.org"}).hints is None
    assert anthropic(metadata={"user_id": "{broken"}).hints is None
    assert anthropic(metadata={"user_id": "[1]"}).hints is None
    found = responses(
        prompt_cache_key="k",
        conversation={"id": "conv"},
        client_metadata={"session_id": "c"},
        metadata={"session_id": "m"},
        session_id="s",
        user="jane",
    )
    assert found.hints == {
        "prompt_cache_key": "k",
        "conversation": "conv",
        "client_metadata.session_id": "c",
        "metadata.session_id": "m",
        "session_id": "s",
    }
    assert responses(conversation="conv").hints == {"conversation": "conv"}
    assert responses(prompt_cache_key="k" * 300).hints is None


@pytest.mark.parametrize("body", [b'{"model":', b"", b"  ", b"[1,2]", b"7", b"\xff\xfe", b'{"model":"m"}x', b"null", b'"x"'])
def test_broken_bodies_are_asked_with_problems(body: bytes) -> None:
    asked = ask("/api/chat", body)
    assert asked.problems
    assert asked.model is None
    assert asked.streamed
    assert asked.body_bytes == len(body)


def test_what_strict_readers_refuse_is_read() -> None:
    raw = b'{"model":"m","messages":[{"role":"user","content":"a\\ud800b"}],"x":NaN}'
    asked = ask("/api/chat", raw)
    assert (asked.problems, asked.messages) == ((), (Message("user", "a\ufffdb"),))


def test_messages_that_are_none() -> None:
    assert chat().messages == ()
    assert ask("/v1/chat/completions", {"messages": "hi"}).problems == ("the messages are no list",)
    odd = ask("/v1/chat/completions", {"messages": [1, "x", {"role": "user", "content": "hi"}]})
    assert (odd.messages, odd.problems) == ((Message("user", "hi"),), ("2 of the messages are no objects",))


def test_bodies_with_too_many_parts_are_not_built() -> None:
    asked = ask("/api/chat", b'{"model":"m","messages":[' + b"{}," * 2_000_001 + b"{}]}")
    assert asked.problems == ("the body has more than two million parts",)


def test_depth_is_no_crash() -> None:
    deep = b'{"model":"m","messages":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    assert ask("/api/chat", deep).problems
    assert ask("/v1/chat/completions", b'{"tools":' + b"[" * 200_000 + b"]" * 200_000 + b"}").problems


def test_37_cloud_models_by_their_names() -> None:
    assert is_remote("gpt-oss:120b-cloud")
    assert is_remote("qwen3-coder:cloud")
    assert not is_remote("cloudy:latest")
    assert not is_remote(None)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "type",
                    "name",
                    "id",
                    "text",
                    "tool_calls",
                    "function",
                    "arguments",
                    "source",
                    "tools",
                    "input",
                    "output",
                    "action",
                    "image_url",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
_FIELDS = st.sampled_from(
    [
        "model",
        "stream",
        "messages",
        "tools",
        "functions",
        "tool_choice",
        "options",
        "think",
        "reasoning",
        "thinking",
        "system",
        "prompt",
        "images",
        "input",
        "instructions",
        "metadata",
        "conversation",
        "stop",
        "format",
        "response_format",
        "keep_alive",
        "max_tokens",
    ]
)
_PATHS = [
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/x",
]


@settings(max_examples=200)
@given(st.sampled_from(_PATHS), st.dictionaries(_FIELDS, _JSON, max_size=8))
def test_never_raises_on_any_json(path: str, body: dict[str, Any]) -> None:
    asked = ask(path, json.dumps(body).encode())
    assert asked.t_ns == 1
    json.dumps([asked.options, asked.hints, asked.tool_choice])


@settings(max_examples=100)
@given(st.sampled_from(_PATHS), st.binary(max_size=120), st.sampled_from([b"", b"gzip", b"zstd", b"x"]))
def test_never_raises_on_any_bytes(path: str, body: bytes, coding: bytes) -> None:
    ask(path, body, ((b"Content-Encoding", coding),) if coding else ())
