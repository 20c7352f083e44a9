"""Every parser, with what no author of a file or a header would write: valid, or refused in words."""

from __future__ import annotations

import json
import math
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import strategies as st

from hlo import catalog, keys, plugins, settings
from hlo.errors import HubError
from hlo.generation import adapters, base_model, prompting, uses
from hlo.generation.lora_files import CONFIG, WEIGHTS, _rank, _targeted, check_tensors, read_config
from hlo.hub.lock import Lock
from hlo.hub.reference import Reference
from hlo.plugins.examples import read_examples
from hlo.records import Adapter, Specialty
from hlo.routing import calibration, labelled
from hlo.telemetry import audit_check, tracing
from hlo.telemetry.audit import Head, Keys, Record
from tests import hub_stub
from tests.hostile.strategies import DEEP, SENDABLE, TEXT, VALUES, cut, damaged, written

if TYPE_CHECKING:
    from hlo.generation.base_model import BaseModel
    from tests.conftest import MakeAdapter
    from tests.figures import Figure
    from tests.hostile.conftest import Tries

pytestmark = [pytest.mark.reliability, pytest.mark.usefixtures("clean_environment")]
DIGEST = "a" * 64


def reading(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Write what is tried to a file, and read it."""

    def use(content: bytes) -> object:
        path.write_bytes(content)
        return read(path)

    return use


PARTS = ("hf://", "org/repo", "@main", "/folder", "@refs/pr/1")
NEAR = cut(b"hf://org/repo@main/folder").map(lambda one: one.decode("latin-1"))
HUB = st.lists(st.sampled_from(PARTS) | TEXT, max_size=6).map("".join) | NEAR


def test_hub_references(tries: Tries) -> None:
    """A reference names a repository and a folder inside it, is written as it was read, and can name no host."""

    def use(text: str) -> None:
        found = Reference.parse(text)
        assert Reference.parse(str(found)) == found
        assert found.repo.count("/") == 1
        assert not set(found.repo) & set("\\\0:?#%@ \n")
        assert not {".", ".."} & {*found.repo.split("/"), *found.folder.split("/")}

    tries("references to a model hub", HUB | TEXT.map("hf://{}".format), use)
    tries("names of models", TEXT | HUB, lambda text: Reference.of_model(text, None))


def test_adapter_references(tmp_path: Path, tries: Tries) -> None:
    """A name under HLO_ADAPTER_PATH, or in a package, leads to no folder outside."""
    root = tmp_path / "adapters"
    (root / "good").mkdir(parents=True)
    inside = Path(settings.__file__).parent

    def use(reference: str) -> None:
        if not reference.startswith(("hf://", "/")):
            assert adapters.locate(Adapter(reference), (root,)).folder.is_relative_to(root.resolve())
            assert adapters.locate(Adapter(reference, "hlo"), ()).folder.is_relative_to(inside.resolve())

    tries("references to adapters", TEXT | st.sampled_from(("good", "../adapters", ".", "..")), use)


LOCKED = {"commit": "b" * 40, "files": {"a/b": {"sha256": DIGEST, "size": 1}}}
LOCK = {"version": 1, "references": {"hf://org/repo": LOCKED}}


def test_lock_files(tmp_path: Path, tries: Tries) -> None:
    """A lock file is read whole or refused."""
    tries("lock files", written(LOCK), reading(tmp_path / "hlo.lock", Lock.read))


def test_labelled_questions(tmp_path: Path, tries: Tries) -> None:
    """A file of labelled questions is read whole or refused, and every question in it can be encoded."""

    def use(path: Path) -> None:
        for one in labelled.read(path):
            assert one.text.encode()

    one = {"question": "my knee hurts", "specialty": "joints", "also": ["bones"]}
    tries("files of labelled questions", written(one), reading(tmp_path / "labelled.jsonl", use))


def calibrated() -> dict[str, Any]:
    """A calibration that can be used."""
    share = {"count": 1, "of": 2, "value": 0.5, "low": 0.1, "high": 0.9}
    shares = dict.fromkeys(("routed", "errors", "ambiguous", "kept", "rejected"), share)
    return {
        "format": calibration.FORMAT,
        "made": "2026-01-01",
        "encoder": "e",
        "fingerprint": "f",
        "specialties": {"a": DIGEST},
        "background": DIGEST,
        "scale": {"gain": 1.0, "handicap": 0.0, "floor": 0.1},
        "thresholds": {"min_in_scope": 0.1, "min_probability": 0.5},
        "tolerated_error": 0.05,
        "confidence": 0.9,
        "tolerated_rejection": 0.05,
        "counts": {"fitting": 1, "in_scope": 1, "out_of_scope": 1},
        "results": shares | {"errors_at_most": 0.5},
        "histograms": {"a": [0] * 10},
    }


def test_calibrations(tmp_path: Path, tries: Tries) -> None:
    """A calibration is read with finite numbers, or refused."""

    def use(path: Path) -> None:
        found = calibration.load(path)
        assert math.isfinite(found.scale.gain + found.scale.handicap + found.scale.floor)

    read = reading(tmp_path / "c.json", use)
    read(json.dumps(calibrated()).encode())
    tries("calibrations", written(calibrated()), read)


ADAPTER = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "rank_pattern": {"q": 2}}
NESTED = "(" * 2000 + ")" * 2000
PATTERNS = st.sampled_from(
    ("(?i)q", "q|", "(", "a{99999999999}", "(?P<x>q)", "\\1", "[", NESTED, "q(?#", "q)(", "(?x)#")
)


def with_patterns(rank: str, targets: str) -> bytes:
    """An adapter's configuration with these patterns."""
    return json.dumps(ADAPTER | {"rank_pattern": {rank: 2}, "target_modules": targets}).encode()


def test_adapters_configurations(tmp_path: Path, tries: Tries) -> None:
    """An adapter's configuration is read or refused, and its patterns can be used."""

    def use(path: Path) -> None:
        found = read_config(path.parent, path.parent)
        _rank("model.layers.0.q_proj", found)
        _targeted("model.layers.0.q_proj", found.get("target_modules"))

    files = written(ADAPTER) | st.builds(with_patterns, PATTERNS, PATTERNS)
    tries("configurations of adapters", files, reading(tmp_path / CONFIG, use))


def test_adapters_weights(tmp_path: Path, make_adapter: MakeAdapter, tiny_model: BaseModel, tries: Tries) -> None:
    """Weights are read whole, with every tensor as it must be, or refused; headers that lie hurt nobody."""
    good = (make_adapter(tmp_path / "good") / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", good[:8])
    header, data = json.loads(good[8 : 8 + size]), good[8 + size :]
    config = read_config(tmp_path / "good", tmp_path / "good")

    def made(head: Any) -> bytes:
        text = json.dumps(head).encode()
        return struct.pack("<Q", len(text)) + text + data

    def retyped(name: str, dtype: str) -> bytes:
        return made(header | {name: header[name] | {"dtype": dtype}})

    names = st.sampled_from(sorted(set(header) - {"__metadata__"}))
    types = st.sampled_from(("F32", "F64", "BOOL", "U8", "I64", "F8_E8M0", "F8_E4M3", "F4", "C64", "U16"))
    sizes = st.integers(0, 2**64 - 1).map(lambda number: struct.pack("<Q", number) + good[8:])
    read = reading(tmp_path / "w.safetensors", lambda path: check_tensors(path, tmp_path, config, tiny_model.linears))
    read(good)
    files = damaged(header).map(made) | st.builds(retyped, names, types) | cut(good) | sizes | st.binary(max_size=64)
    tries("weights of adapters", files, read)


def test_files_of_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: Tries) -> None:
    """A specialty's file of examples is read or refused."""
    package = tmp_path / "hlo_hostile_examples"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    good = b'patients = ["my knee hurts", "my back"]\nclinical = ["What is gout?"]\n'
    deep = st.just(b"a = " + b"[" * 5000 + b"]" * 5000)
    files = cut(good) | SENDABLE.map(str.encode) | deep | st.binary()
    read = reading(package / "examples.toml", lambda _: read_examples("hlo_hostile_examples"))
    tries("files of examples", files, read)


def test_specialties(tries: Tries) -> None:
    """What a plugin declares is a specialty whose words can be told to anybody, or refused."""

    def use(changes: dict[str, Any]) -> None:
        specialty = msgspec.structs.replace(Specialty("joints", "Joints", Adapter("joints")), **changes)
        catalog.check_declaration(specialty)
        assert f"{specialty.name}{specialty.title}{specialty.description}{specialty.template}".encode()

    names = st.sampled_from(Specialty.__struct_fields__)
    tries("declarations of specialties", st.dictionaries(names, TEXT | VALUES, min_size=1, max_size=2), use)


def test_templates(tries: Tries) -> None:
    """A template renders, with the question in it, or is refused; what it asks for beyond that it does not get."""
    parts = (
        *("{{ question }}", "{{ question | upper }}", "{{ question.__class__ }}", "{{ ''.__class__.mro() }}"),
        *("{{ x }}", "{% set x = question %}", "{% for x in y %}", "{% endfor %}", "{% include 'x' %}", "{{ 1/0 }}"),
    )
    tries("templates", st.lists(st.sampled_from(parts) | TEXT, max_size=5).map("".join), prompting.check_template)


POINTS = tuple(EntryPoint(name, f"hlo_{name}", plugins.GROUP) for name in ("cardiology", "oncology", "a-b"))


def test_plugin_selections(tries: Tries) -> None:
    """HLO_PLUGINS keeps and leaves out what it names, or is refused."""

    def use(chosen: str) -> None:
        kept, off, _ = plugins.choose(POINTS, chosen)
        assert {point.name for point in kept} | set(off) == {point.name for point in POINTS}

    words = st.sampled_from(("cardiology", "oncology", "-", ",", "-oncology", "a-b", " ")) | TEXT
    tries("selections of plugins", st.lists(words, max_size=6).map(",".join), use)


NAMES = sorted(settings.names())


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """The process's environment with one setting."""
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def test_settings_in_the_environment(tries: Tries) -> None:
    """Each setting is read from the environment, or refused by name."""

    def use(given: tuple[str, str]) -> None:
        with environment(*given):
            settings.load_settings()

    values = SENDABLE | VALUES.map(json.dumps) | DEEP.map(bytes.decode)
    values = values.map(lambda one: one.replace("\0", ""))  # which no environment can hold
    tries("settings in the environment", st.tuples(st.sampled_from(NAMES), values), use)


def test_settings_in_files(tries: Tries) -> None:
    """`hlo.toml` and `.env` are read, or refused by what is wrong in them."""

    def line(name: str, value: Any) -> bytes:
        return f"{name[4:].lower()} = {json.dumps(value)}\n".encode()

    toml = b'host = "0.0.0.0"\nport = 80\nengine_arguments = { a = [1] }\nplugins = "a"\n'
    deep = st.just(b"port = " + b"[" * 5000 + b"]" * 5000)
    files = cut(toml) | st.builds(line, st.sampled_from(NAMES), VALUES) | deep | st.binary()
    tries("`hlo.toml` files", files, reading(settings.TOML_FILE, lambda _: settings.load_settings()))
    settings.TOML_FILE.unlink()
    dotenv = cut(b"HLO_PORT=80\nOTHER='x'\nexport HLO_HOST=\"::1\"\n") | st.binary()
    tries("`.env` files", dotenv, reading(settings.ENV_FILE, lambda _: settings.load_settings()))


PARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_callers_traces(tries: Tries) -> None:
    """A `traceparent` and a `tracestate` name a span, or none; what is sent on can be sent."""

    def use(headers: tuple[bytes, bytes]) -> None:
        parent, state = (one.decode("latin-1") for one in headers)
        span = tracing.incoming({"traceparent": parent, "tracestate": state})
        for value in tracing.outgoing(span).values():
            assert value.encode("latin-1")
        assert len(tracing.trace_id(span)) == 32

    states = cut(b"a=1,b@c=2") | st.binary()
    tries("traceparent and tracestate", st.tuples(cut(PARENT) | st.binary(), states), use)


KEYS = {"keys": [{"id": "a1", "name": "x", "role": "ask", "sha256": DIGEST, "created": "2026-01-01T00:00:00+00:00"}]}


def test_files_of_keys(tmp_path: Path, tries: Tries) -> None:
    """A file of keys is read or refused, and no key is found for what nobody was given."""
    tries("files of keys", written(KEYS), reading(tmp_path / "hlo.keys", keys.read))
    (tmp_path / "hlo.keys").write_text(json.dumps(KEYS))
    ring = keys.Keyring(tmp_path / "hlo.keys")

    def use(given: str) -> None:
        assert ring.find(given) is None

    headers = st.binary().map(lambda one: one.decode("latin-1"))
    tries("keys", headers | headers.map("hlo_a1_{}".format), use)


def test_audit_logs(tmp_path: Path, tries: Tries) -> None:
    """A log that was tampered with in any way is checked to its end, and each fault is told."""
    words = {field.name: "x" for field in msgspec.structs.fields(Record)}
    numbers = {"number": 1, "scores": (), "prompt_tokens": 1, "completion_tokens": 1}
    sealing = Keys("a key for these tests, and no other")
    line = sealing.sealed(Record(**words | numbers))  # type: ignore[arg-type]
    log = tmp_path / "audit.jsonl"
    head = log.with_name("audit.jsonl.head")
    body = line.rpartition(b'"mac":"')[0]

    def use(content: tuple[bytes, bytes]) -> None:
        log.write_bytes(content[0])
        head.write_bytes(content[1])
        assert audit_check.check(log, "a key for these tests, and no other").faults

    macs = SENDABLE.map(lambda text: body + b'"mac":"' + text.encode() + b'"}')
    lines = cut(line + b"\n" + line + b"\n") | macs | DEEP | st.binary()
    heads = cut(sealing.head(Head(7, "x"))) | DEEP | st.binary()
    tries("lines of an audit log", st.tuples(lines, heads), use)


def test_models_configurations(tmp_path: Path, tries: Tries) -> None:
    """A model's `config.json` is read or refused."""
    good = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 8}
    (tmp_path / "m").mkdir()
    read = reading(tmp_path / "m/config.json", lambda path: base_model._read_config(path.parent))
    tries("configurations of models", written(good), read)


def test_uses_of_adapters(tmp_path: Path, tries: Tries) -> None:
    """What the last run noted down of its adapters' uses is read, or done without."""
    read = reading(tmp_path / uses._FILE, lambda path: uses._read(path.parent))
    tries("notes of uses", written({"cardiology": 1.5}), read)


@pytest.mark.parametrize(
    "text", ["hf://../..", "hf://evil.host:80/x", "hf://evil.host/x/../../y", "hf://a@b/c", "hf:///etc"]
)
def test_a_reference_can_not_name_a_host_or_a_parent(text: str) -> None:
    """What looks like a way out of the hub is refused, or is the name of an organisation on it."""
    with pytest.raises(HubError, match="is no reference to a model hub"):
        Reference.parse(text)


def test_no_reference_leads_to_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Figure) -> None:
    """Whatever a reference looks like, HF_ENDPOINT alone is asked, and there for a model of that name."""
    asked: list[str] = []
    lookup = socket.getaddrinfo

    def watched(host: str, *more: Any, **also: Any) -> Any:
        asked.append(host)
        return lookup(host, *more, **also)

    monkeypatch.setattr(socket, "getaddrinfo", watched)
    references = ("evil.host/x", "127.0.0.1/x", "localhost/x@main", "metadata.internal/latest@main/a", "x/y@refs/pr/1")
    with hub_stub.serving(tmp_path / "cache") as hub:
        for text in references:
            with pytest.raises(HubError):
                adapters.locate(Adapter(f"hf://{text}"), (), hub.open())
        paths = {one.path for one in hub.asked if one.path != "/api/agent-harnesses"}  # huggingface_hub's own
    assert len(paths) >= len(references)
    names = tuple(f"{start}{text.split('@')[0]}/" for text in references for start in ("/", "/api/models/"))
    assert [path for path in paths if not f"{path}/".startswith(names)] == []
    assert set(asked) <= {"127.0.0.1"}
    figure("inputs", "references that look like other hosts", len(references), "HF_ENDPOINT alone was asked")
