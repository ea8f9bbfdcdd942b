"""A request's history → messages: what every dialect carries in its own way, in one.

Rules that hold here:

- Order is the request's. One `Message` for each speaker's turn: a result inside a user's message (Anthropic) and an item of
  its own (Responses) both become role "tool"; what an assistant did in one turn (reasoning, text, calls) is one message.
- Several texts of one message are joined by a line break.
- Media become their SHA-256, of the decoded bytes, so that the same picture has the same digest in every dialect; an address
  instead of bytes becomes the digest of the address.
- What is of another kind than the dialect says is passed over.
"""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Iterable
from typing import Any

from qm_proxy.events import Message, PastCall
from qm_proxy.wire.tolerant import compact

__all__ = ["anthropic_message", "native_message", "openai_message", "prompt_message", "responses_item", "text_of"]

Object = dict[str, Any]


def text_of(value: object) -> str:
    """A string as it is, anything else as nothing."""
    return value if isinstance(value, str) else ""


def prompt_message(prompt: object, images: object) -> Message | None:
    """A completion's prompt (a text, or several), and native images."""
    if prompt is None and not images:
        return None
    texts = prompt if isinstance(prompt, list) else [prompt]
    return Message("user", _join(text for text in texts if isinstance(text, str)), media=_images(images))


def native_message(wire: Object, found: list[Message]) -> None:
    get = wire.get
    calls = get("tool_calls")
    images = get("images")
    found.append(
        Message(
            text_of(get("role")),
            _join(_texts(get("content"))),
            text_of(get("thinking")),
            _past_calls(calls) if calls else (),
            text_of(get("tool_call_id")),
            text_of(get("tool_name")) or text_of(get("name")),
            media=_images(images) if images else (),
        )
    )


def openai_message(wire: Object, found: list[Message]) -> None:
    get = wire.get
    role = text_of(get("role"))
    content = get("content")
    calls = _past_calls(get("tool_calls")) if "tool_calls" in wire else ()
    former = get("function_call")
    if isinstance(former, dict):
        calls += (PastCall("", text_of(former.get("name")), _arguments(former.get("arguments"))),)
    thinking = text_of(get("reasoning")) or text_of(get("reasoning_content"))
    text = ""
    media: tuple[str, ...] = ()
    if isinstance(content, str):
        text = content
    elif isinstance(content, list):
        text, media = _join(_texts(content)), _media(content)
        thinking = thinking or _join(_texts(content, thinking=True))
    tool = role in ("tool", "function")
    found.append(
        Message(
            "tool" if tool else role,
            text,
            thinking,
            calls,
            text_of(get("tool_call_id")),
            text_of(get("name")) if tool else "",
            media=media,
        )
    )


def anthropic_message(wire: Object, found: list[Message]) -> None:
    """Blocks in order; each result is a message of its own, what stands before and behind it keeps the wire's role."""
    role = text_of(wire.get("role"))
    content = wire.get("content")
    if not isinstance(content, list):
        found.append(Message(role, text_of(content)))
        return
    before = len(found)
    blocks: list[Object] = []
    for block in content:
        if not isinstance(block, dict):
            continue
        if text_of(block.get("type")).endswith("tool_result"):
            _flush(role, blocks, found)
            inner = block.get("content")
            error = block.get("is_error")
            found.append(
                Message(
                    role="tool",
                    text=_join(_texts(inner)),
                    call_id=text_of(block.get("tool_use_id")),
                    is_error=error if isinstance(error, bool) else None,
                    media=_media(inner),
                )
            )
        else:
            blocks.append(block)
    _flush(role, blocks, found)
    if len(found) == before:
        found.append(Message(role))


def _flush(role: str, blocks: list[Object], found: list[Message]) -> None:
    if not blocks:
        return
    calls = tuple(
        PastCall(text_of(block.get("id")), text_of(block.get("name")), _arguments(block.get("input")))
        for block in blocks
        if text_of(block.get("type")).endswith("tool_use")
    )
    found.append(Message(role, _join(_texts(blocks)), _join(_texts(blocks, thinking=True)), calls, media=_media(blocks)))
    blocks.clear()


def responses_item(wire: Object, found: list[Message]) -> None:
    """One item. What the assistant did in one turn (reasoning, text, calls) comes as items and becomes one message."""
    kind = text_of(wire.get("type"))
    if kind in ("", "message"):
        role, content = text_of(wire.get("role")), wire.get("content")
        message = Message(role, _join(_texts(content)), media=_media(content))
        last = found[-1] if found else None
        if role == "assistant" and last is not None and last.role == "assistant" and not last.calls and not last.text:
            message = Message(role, message.text, last.thinking, media=message.media)
            found.pop()
        found.append(message)
    elif kind.endswith("_call_output"):
        output = wire.get("output")
        plain = output if isinstance(output, (str, list)) or output is None else compact(output)
        call_id = text_of(wire.get("call_id")) or text_of(wire.get("id"))
        found.append(Message("tool", _join(_texts(plain)), call_id=call_id, media=_media(output)))
    elif kind.endswith("_call"):
        arguments = next((wire[key] for key in ("arguments", "input", "action", "operation") if wire.get(key) is not None), None)
        call = PastCall(
            text_of(wire.get("call_id")) or text_of(wire.get("id")),
            text_of(wire.get("name")) or kind.removesuffix("_call"),
            _arguments(arguments),
        )
        _assistant(found, calls=(call,))
    elif kind == "reasoning":
        thinking = _join(_texts(wire.get("content")) or _texts(wire.get("summary")))
        if thinking or not (found and found[-1].role == "assistant"):
            _assistant(found, thinking=thinking)


def _assistant(found: list[Message], *, thinking: str = "", calls: tuple[PastCall, ...] = ()) -> None:
    last = found[-1] if found else None
    if last is None or last.role != "assistant" or (thinking and (last.calls or last.text)):
        found.append(Message("assistant", thinking=thinking, calls=calls))
        return
    joined = _join(text for text in (last.thinking, thinking) if text)
    found[-1] = Message("assistant", last.text, joined, last.calls + calls, media=last.media)


def _past_calls(calls: object) -> tuple[PastCall, ...]:
    if not isinstance(calls, list):
        return ()
    found: list[PastCall] = []
    for call in calls:
        if not isinstance(call, dict):
            continue
        inner = call.get("function") or call.get("custom")
        if isinstance(inner, dict):
            arguments = inner.get("arguments") if inner.get("arguments") is not None else inner.get("input")
            found.append(PastCall(text_of(call.get("id")), text_of(inner.get("name")), _arguments(arguments)))
    return tuple(found)


def _arguments(value: object) -> str:
    return value if isinstance(value, str) else "{}" if value is None else compact(value)


_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "summary_text", "reasoning_text", "refusal", ""})


def _texts(content: object, *, thinking: bool = False) -> list[str]:
    """The texts of a content in any shape: a string, parts, blocks."""
    if isinstance(content, str):
        return [] if thinking or not content else [content]
    if not isinstance(content, list):
        return []
    found: list[str] = []
    for part in content:
        if isinstance(part, str):
            text: object = "" if thinking else part
        elif not isinstance(part, dict):
            continue
        elif text_of(part.get("type")) == "thinking":
            text = part.get("thinking") if thinking else ""
            if isinstance(text, list):
                text = _join(_texts(text))
        elif thinking:
            continue
        elif text_of(part.get("type")) in _TEXT_PARTS:
            text = part.get("text") or part.get("refusal")
        elif text_of(part.get("type")) == "document":
            source = part.get("source")
            text = source.get("data") if isinstance(source, dict) and source.get("type") == "text" else ""
        else:
            continue
        if isinstance(text, str) and text:
            found.append(text)
    return found


def _images(images: object) -> tuple[str, ...]:
    return tuple(_digest(image) for image in images if isinstance(image, str)) if isinstance(images, list) else ()


def _join(texts: Iterable[str]) -> str:
    return "\n".join(texts)


def _media(content: object) -> tuple[str, ...]:
    if not isinstance(content, list):
        return ()
    found: list[str] = []
    for part in content:
        if not isinstance(part, dict):
            continue
        value = _media_value(part, text_of(part.get("type")))
        if value:
            found.append(_digest(value))
    return tuple(found)


def _media_value(part: Object, kind: str) -> str:
    """Base64, a data URI, an address or a file's id; "" where the part is no medium."""
    if kind in ("image_url", "input_image", "video_url", "audio_url"):
        inner = part.get(kind) or part.get("image_url")
        return text_of(inner.get("url")) if isinstance(inner, dict) else text_of(inner) or text_of(part.get("file_id"))
    if kind in ("image", "document"):
        source = part.get("source")
        if isinstance(source, dict) and source.get("type") != "text":
            return text_of(source.get("data")) or text_of(source.get("url")) or text_of(source.get("file_id"))
        return text_of(part.get("image"))
    if kind in ("input_audio", "file", "input_file"):
        inner = part.get(kind)
        inner = inner if isinstance(inner, dict) else part
        return next(
            (text_of(inner.get(key)) for key in ("data", "file_data", "file_url", "file_id") if text_of(inner.get(key))), ""
        )
    return ""


def _digest(value: str) -> str:
    """SHA-256 hex of what base64 or a data URI stands for; of the text itself when it is neither."""
    payload = value.partition(",")[2] if value.startswith("data:") else value
    raw = payload.encode("utf-8", "replace")
    try:
        if not value.startswith(("http://", "https://", "file-")):
            raw = binascii.a2b_base64(raw.translate(None, b"\r\n "), strict_mode=True)
    except ValueError:
        pass
    return hashlib.sha256(raw).hexdigest()
