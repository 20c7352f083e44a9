"""Settings: from arguments, `HLO_*` environment variables, `.env` and `hlo.toml`, in that order of precedence.

Unknown keys are refused by name. The names `MODEL_NAME`, `ADAPTER_PATH` and `QUANTIZE` are understood too.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pydantic_settings
from dotenv import dotenv_values
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from hlo.errors import SettingsError

PREFIX = "HLO_"
TOML_FILE = Path("hlo.toml")
ENV_FILE = Path(".env")

# Variables of this prefix that configure something else than the process: they are not settings, and not misspellings.
_NOT_SETTINGS = frozenset({"HLO_URL", "HLO_API_KEY"})


class Settings(BaseSettings):
    """Everything that an operator can choose. `hlo doctor` prints the values in force."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=ENV_FILE,
        toml_file=TOML_FILE,
        extra="ignore",  # `_refuse_unknown` does this with a better message, and leaves other programs' keys alone
        frozen=True,
        populate_by_name=True,
    )

    # The model and its adapters
    model: str = Field(
        default="",
        validation_alias=AliasChoices("HLO_MODEL", "MODEL_NAME"),
        description="Base model: a folder, or a model hub's `org/name`. Empty: the embedded demonstration model.",
    )
    revision: str | None = Field(default=None, description="Revision of a hub's model (a commit, tag or branch).")
    base_name: str | None = Field(
        default=None, description="The name by which adapters call this base model; default: the last part of `model`."
    )
    adapter_path: Path = Field(
        default=Path("adapters"),
        validation_alias=AliasChoices("HLO_ADAPTER_PATH", "ADAPTER_PATH"),
        description="Folder in which adapters are looked up by name.",
    )
    cache_dir: Path = Field(
        default=Path("~/.cache/hlo"),
        description="Where checked copies of adapters, and embeddings of examples, are kept.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where the model runs.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Precision of activations and of unquantised weights; auto: float32 on CPU."
    )
    quantization: Literal["none", "int8", "int8_weight_only", "bitsandbytes", "fp8_per_channel"] = Field(
        default="none", description="8-bit weights; all but fp8_per_channel need what `hlo models quantize` makes."
    )
    quantize: bool = Field(
        default=False,
        validation_alias=AliasChoices("HLO_QUANTIZE", "QUANTIZE"),
        description="Short for quantization=int8.",
    )

    # The engine
    engine: str = Field(
        default="auto",
        description="vllm, openai (servers elsewhere), transformers, or what a plugin offers; auto: openai where "
        "HLO_ENGINE_URLS is set, and else vllm where it is installed.",
    )
    engine_urls: str = Field(
        default="", description="Addresses of `vllm serve --enable-lora`, with commas between: the engine openai's."
    )
    engine_key: SecretStr | None = Field(default=None, description="The key that those servers ask for (`--api-key`).")
    engine_timeout_s: float = Field(
        default=120.0, gt=0, description="Seconds after which one of those servers that sends nothing has failed."
    )
    engine_wait_s: float = Field(
        default=600.0, gt=0, description="Seconds in which, at start, the first of those servers must answer."
    )
    tensor_parallel_size: int = Field(
        default=1, ge=1, description="GPUs that vLLM divides the model among, for one that is too large for one."
    )
    data_parallel_size: int = Field(
        default=1, ge=1, description="Copies of the model that vLLM runs, each on GPUs of its own."
    )
    max_lora_rank: int = Field(default=64, ge=1, description="Highest rank of an adapter; one above it is refused.")
    spare_adapters: int = Field(
        default=2, ge=0, description="Adapters beyond those at start for which the engine keeps room, for reloads."
    )
    adapter_slots: int | None = Field(
        default=None,
        ge=1,
        description="Adapters in the engine at once; with fewer than there are, they take turns. Default: all.",
    )
    adapter_turn_s: float = Field(
        default=0.5, gt=0, description="Seconds that an adapter keeps its slot at least while another waits for one."
    )
    max_model_len: int | None = Field(default=None, ge=16, description="Longest prompt plus answer, in tokens.")
    max_num_seqs: int | None = Field(default=None, ge=1, description="Most requests in one batch.")
    max_num_batched_tokens: int | None = Field(
        default=None, ge=16, description="Most tokens in one step; fewer take less memory, and longer to read a prompt."
    )
    kv_cache_dtype: Literal["auto", "fp8"] = Field(
        default="auto", description="Precision of the KV cache; fp8 takes half the memory for a token."
    )
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1, description="Share of GPU memory to use.")
    cpu_kv_cache_gib: int = Field(default=1, ge=1, description="KV cache on a CPU, in GiB.")
    enforce_eager: bool | None = Field(default=None, description="Skip compilation; default: only on a CPU.")
    max_queued_requests: int = Field(
        default=512, ge=1, description="Requests that may wait for the engine; others get 503 at once."
    )
    engine_stall_s: float = Field(
        default=120.0,
        gt=0,
        description="Seconds after which vLLM's process, when it does not move, is ended and restarted.",
    )
    engine_restarts: int = Field(
        default=5, ge=0, description="Attempts to start an engine that died, before the server stops; 0: it stops."
    )
    engine_restart_backoff_s: float = Field(
        default=1.0, ge=0, description="Seconds before the first attempt; each waits twice as long as the one before."
    )
    engine_restart_window_s: float = Field(
        default=600.0, gt=0, description="Seconds that an engine has to run before attempts are counted anew."
    )
    lora_kernels: Literal["hlo", "engine"] = Field(
        default="hlo", description="Whose kernels compute adapters on a GPU: HLO's own, or the engine's."
    )
    engine_arguments: dict[str, Any] = Field(
        default={}, description="Further arguments of vLLM's AsyncEngineArgs, as JSON; they come before HLO's own."
    )

    # Plugins
    plugins: str = Field(
        default="",
        description="Plugins to load, by name, with commas between; `-name` leaves one out. Empty: all installed.",
    )
    plugin_timeout_s: float = Field(
        default=20.0, gt=0, description="Seconds that a plugin may take to be imported and to say what it offers."
    )
    question_timeout_s: float = Field(
        default=1.0, gt=0, description="Seconds that a plugin may take to look at a question."
    )
    mode: Literal["development", "production"] = Field(
        default="development",
        description="In production, what comes from a model hub must be pinned: by a commit, or in the lock file.",
    )
    lock_file: Path = Field(
        default=Path("hlo.lock"), description="Where `hlo models fetch` writes the commits and hashes that it fetched."
    )

    # Routing
    encoder: str = Field(
        default="", description="Sentence encoder: a hub's name or a folder. Empty: the one that comes with HLO."
    )
    encoder_batch: int = Field(default=8, ge=1, description="Most questions encoded in one batch.")
    encoder_threads: int | None = Field(
        default=None, ge=1, description="CPU threads of the encoder; default: one for each core, 4 at most."
    )
    encoder_timeout_s: float = Field(default=10.0, gt=0, description="Seconds that a question waits for the encoder.")
    encoder_failure: Literal["refuse", "base"] = Field(
        default="refuse",
        description="When the encoder fails, refuse questions, or answer them with the base model and a notice.",
    )
    background: bool = Field(
        default=True, description="Compare questions with what no specialty answers, too, to know them as out of scope."
    )
    min_in_scope: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="A question that fits any specialty with less probability is out of scope.",
    )
    min_probability: float = Field(
        default=0.5, ge=0, le=1, description="A question whose best specialty fits with less probability is ambiguous."
    )
    calibration: Path | None = Field(
        default=None, description="What `hlo route calibrate` wrote; its thresholds come before the two above."
    )
    ambiguous: Literal["first", "base", "ask"] = Field(
        default="first",
        description="Who answers an ambiguous question: the best specialty, the base model, or a question back.",
    )
    out_of_scope: Literal["base", "refuse"] = Field(
        default="base", description="Answer out-of-scope questions with the base model, or refuse them."
    )

    # The service
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0: any free one.")
    max_body_bytes: int = Field(default=1 << 20, ge=1024, description="Largest request body.")
    receive_timeout_s: float = Field(
        default=30.0, gt=0, description="Seconds in which a request's head, and then its body, have to arrive."
    )
    send_timeout_s: float = Field(
        default=30.0, gt=0, description="Seconds after which a client that takes nothing of its answer is cut off."
    )
    max_question_chars: int = Field(default=4000, ge=1, description="Longest question, in characters.")
    max_batch_questions: int = Field(default=256, ge=1, description="Most questions in one `/route` request.")
    keys_file: Path = Field(
        default=Path("hlo.keys"),
        description="Where `hlo keys` keeps API keys, as hashes; without any key the server listens on loopback alone.",
    )
    request_timeout_s: float = Field(
        default=600.0, gt=0, description="Seconds in which a request must be done that does not say (`timeout_s`)."
    )
    max_request_timeout_s: float = Field(
        default=3600.0, gt=0, description="Most seconds that a request may ask for; more are refused."
    )
    audit_log: Path | None = Field(
        default=None, description="File to which each answer is recorded (`hlo audit`); needs an audit key."
    )
    audit_key: SecretStr | None = Field(
        default=None,
        min_length=32,
        description="Key of the audit log, without which nobody can make or check one.",
    )
    audit_max_mb: int = Field(default=100, ge=1, description="Size from which the audit log begins a new file.")
    shutdown_grace_s: int = Field(default=20, ge=0, description="Seconds in which running answers may finish.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level logged.")
    capture_content: bool = Field(
        default=False,
        description="Put the words of questions and answers into spans; else they are nowhere.",
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="Lines of the log: for people, or a JSON object each."
    )
    trace_url: str = Field(
        default="",
        pattern=r"^$|^https?://\S*\{trace_id\}\S*$",
        description="Where people see a trace, for the console: `http://localhost:16686/trace/{trace_id}`, for one.",
    )

    @field_validator("engine_arguments", mode="before")
    @classmethod
    def _from_json(cls, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value  # a command's option

    @field_validator("engine_urls")
    @classmethod
    def _are_addresses(cls, value: str) -> str:
        found = [one.strip().rstrip("/") for one in value.split(",") if one.strip()]
        for one in found:
            parts = urlsplit(one)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
                raise ValueError("an address looks like http://gpu-1:8000, and several have commas between them")
            if "@" in parts.netloc:
                raise ValueError("an address holds no password; the servers' key is HLO_ENGINE_KEY")
        return ",".join(dict.fromkeys(found))

    @model_validator(mode="after")
    def _quantize_means_int8(self) -> Settings:
        if self.quantize and self.quantization == "fp8_per_channel":
            raise ValueError("QUANTIZE=true means int8 weights, but quantization is fp8_per_channel; set only one")
        return self

    @model_validator(mode="after")
    def _an_audit_log_has_a_key(self) -> Settings:
        if self.audit_log is not None and self.audit_key is None:
            raise ValueError("HLO_AUDIT_LOG is set, but HLO_AUDIT_KEY (32 characters or more) is not")
        return self

    @property
    def effective_quantization(self) -> str:
        """The quantisation asked for, by either setting."""
        return "int8" if self.quantize and self.quantization == "none" else self.quantization

    @property
    def generates_elsewhere(self) -> bool:
        """Whether the engine is `openai`, by whichever setting."""
        return self.engine == "openai" or (self.engine == "auto" and bool(self.engine_urls))

    @property
    def servers(self) -> tuple[str, ...]:
        """The addresses in `engine_urls`."""
        return tuple(one for one in self.engine_urls.split(",") if one)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, environment, `.env`, `hlo.toml`."""
        return init_settings, env_settings, dotenv_settings, TomlConfigSettingsSource(settings_cls)


SECRETS = frozenset(name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation))
_HELP = "`hlo serve --help` lists what each setting takes."
PUBLIC = tuple(name for name in Settings.model_fields if name not in SECRETS)


def load_settings(**arguments: Any) -> Settings:
    """Read the settings. `arguments` (None means not given) come before everything else. Raises `SettingsError`."""
    given = {name: value for name, value in arguments.items() if value is not None}
    _refuse_unknown()
    try:
        return Settings(**given)
    except (pydantic_settings.SettingsError, RecursionError) as error:  # its own reader of JSON in the environment
        raise SettingsError(f"A setting is not the JSON that it must be: {error}.", remedy=_HELP) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "settings"
        got = "" if any(place.lower().endswith(name) for name in SECRETS) else f"; got {first['input']!r}"
        raise SettingsError(
            f"Setting `{place}`: {first['msg']}{got}." if first["loc"] else f"{first['msg']}.",
            remedy=_HELP,
        ) from error


def names() -> tuple[str, ...]:
    """The environment names of all settings, the original design's included."""
    found = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    for spec in Settings.model_fields.values():
        if isinstance(spec.validation_alias, AliasChoices):
            found += [str(choice) for choice in spec.validation_alias.choices if str(choice) not in found]
    return tuple(found)


def _refuse_unknown() -> None:
    """Refuse keys of ours that are not settings: a misspelt key would otherwise be silently ignored."""
    known = set(names()) | _NOT_SETTINGS
    ours = [(key, "the environment") for key in os.environ if key.upper().startswith(PREFIX)]
    if ENV_FILE.is_file():
        try:
            ours += [(key, str(ENV_FILE)) for key in dotenv_values(ENV_FILE) if key.upper().startswith(PREFIX)]
        except UnicodeDecodeError as error:
            raise SettingsError(f"`{ENV_FILE}` is not UTF-8: {error}.", remedy="Save it in UTF-8.") from error
    for key, place in ours:
        if key.upper() not in known:
            raise _unknown(key, place, known)
    if TOML_FILE.is_file():
        try:
            table = tomllib.loads(TOML_FILE.read_bytes().decode())  # not as text: its line ends would be others
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise SettingsError(f"`{TOML_FILE}` is not TOML: {error}.", remedy="Mend that line.") from error
        fields = Settings.model_fields.keys()
        for key in table:
            if key not in fields:
                raise _unknown(key, str(TOML_FILE), fields)


def _unknown(key: str, place: str, known: Iterable[str]) -> SettingsError:
    near = difflib.get_close_matches(key, known, n=1) or difflib.get_close_matches(key.upper(), known, n=1)
    return SettingsError(
        f"Unknown setting `{key}` in {place}.",
        remedy=f"Did you mean `{near[0]}`?" if near else "`hlo serve --help` lists the settings.",
    )
