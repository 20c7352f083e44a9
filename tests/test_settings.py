"""The settings: where they come from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from hlo.errors import SettingsError
from hlo.settings import Settings, load_settings, names

pytestmark = pytest.mark.usefixtures("clean_environment")

# A setting of each kind (plain; with an alias; a number; a path), with four values to tell four sources apart.
SAMPLES = {
    "host": ("1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"),
    "model": ("a/1", "a/2", "a/3", "a/4"),
    "port": ("1", "2", "3", "4"),
    "adapter_path": ("/1", "/2", "/3", "/4"),
}


def toml(**values: str) -> None:
    Path("hlo.toml").write_text("".join(f'{k} = "{v}"\n' for k, v in values.items()), encoding="utf-8")


def dotenv(text: str) -> None:
    Path(".env").write_text(text, encoding="utf-8")


def test_defaults_need_nothing() -> None:
    """With nothing set, every setting has its default."""
    settings = load_settings()
    assert settings == Settings()
    assert (settings.model, settings.port, settings.adapter_path) == ("", 8000, Path("adapters"))


@pytest.mark.parametrize("name", SAMPLES)
def test_precedence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument beats the environment, which beats `.env`, which beats `hlo.toml`, for every kind of setting."""
    values = SAMPLES[name]
    toml(**{name: values[0]})
    assert str(getattr(load_settings(), name)) == values[0]
    dotenv(f"HLO_{name.upper()}={values[1]}\n")
    assert str(getattr(load_settings(), name)) == values[1]
    monkeypatch.setenv(f"HLO_{name.upper()}", values[2])
    assert str(getattr(load_settings(), name)) == values[2]
    assert str(getattr(load_settings(**{name: values[3]}), name)) == values[3]


def test_an_argument_of_none_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that was not given on the command line (None) hides nothing."""
    monkeypatch.setenv("HLO_PORT", "9")
    assert load_settings(port=None).port == 9


@pytest.mark.parametrize(
    ("variable", "value", "setting", "expected"),
    [
        ("MODEL_NAME", "org/m", "model", "org/m"),
        ("ADAPTER_PATH", "/a", "adapter_path", Path("/a")),
        ("QUANTIZE", "true", "quantize", True),
        ("HLO_QUANTIZE", "1", "quantize", True),
    ],
)
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_original_names(
    variable: str, value: str, setting: str, expected: object, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`MODEL_NAME`, `ADAPTER_PATH` and `QUANTIZE` are understood, in the environment and in `.env`."""
    if place == ".env":
        dotenv(f"{variable}={value}\n")
    else:
        monkeypatch.setenv(variable, value)
    assert getattr(load_settings(), setting) == expected


@pytest.mark.parametrize(("variable", "setting"), [("MODEL_NAME", "model"), ("ADAPTER_PATH", "adapter_path")])
def test_original_names_obey_precedence(variable: str, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An original name in the environment beats the HLO_ name in `.env`, and an argument beats both."""
    dotenv(f"HLO_{setting.upper()}=/dotenv\n")
    monkeypatch.setenv(variable, "/environment")
    assert str(getattr(load_settings(), setting)) == "/environment"
    assert str(getattr(load_settings(**{setting: "/argument"}), setting)) == "/argument"


def test_own_name_beats_original_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """With both names in one place, the HLO_ name counts."""
    monkeypatch.setenv("MODEL_NAME", "original")
    monkeypatch.setenv("HLO_MODEL", "own")
    assert load_settings().model == "own"


@pytest.mark.parametrize("way", ["int8", "int8_weight_only", "bitsandbytes"])
def test_quantize_means_int8(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`QUANTIZE=true` asks for int8, and agrees with every way to serve int8 weights that is asked for beside it."""
    monkeypatch.setenv("QUANTIZE", "true")
    assert load_settings().effective_quantization == "int8"
    monkeypatch.setenv("HLO_QUANTIZATION", way)
    assert load_settings().effective_quantization == way


def test_quantization_alone_is_effective() -> None:
    """Without QUANTIZE, `quantization` alone decides."""
    assert load_settings(quantization="fp8_per_channel").effective_quantization == "fp8_per_channel"
    assert load_settings().effective_quantization == "none"


def test_contradiction_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """`QUANTIZE=true` with another quantization is refused, and the message names both."""
    monkeypatch.setenv("QUANTIZE", "true")
    monkeypatch.setenv("HLO_QUANTIZATION", "fp8_per_channel")
    with pytest.raises(SettingsError, match=r"QUANTIZE=true .* fp8_per_channel"):
        load_settings()


def test_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt HLO_ variable is refused by name, with the name that was meant."""
    monkeypatch.setenv("HLO_MAX_MODEL_LENGTH", "9")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "`HLO_MAX_MODEL_LENGTH` in the environment" in caught.value.message
    assert caught.value.remedy == "Did you mean `HLO_MAX_MODEL_LEN`?"


def test_unknown_key_in_dotenv_is_refused() -> None:
    """A misspelt HLO_ key in `.env` is refused by name, with the name that was meant."""
    dotenv("HLO_ADAPTR_PATH=x\n")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "`HLO_ADAPTR_PATH` in .env" in caught.value.message
    assert caught.value.remedy == "Did you mean `HLO_ADAPTER_PATH`?"


def test_unknown_key_in_toml_is_refused() -> None:
    """A misspelt key in `hlo.toml` is refused by name, with the name that was meant."""
    toml(min_in_scopes="0.1")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "`min_in_scopes` in hlo.toml" in caught.value.message
    assert caught.value.remedy == "Did you mean `min_in_scope`?"


def test_unknown_key_like_no_other_points_to_the_list() -> None:
    """An unknown key that resembles no setting is refused with the place where all are listed."""
    toml(zzzzzz="0.1")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "hlo serve --help" in caught.value.remedy


def test_other_programs_variables_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables without our prefix, and `HLO_URL`, which the client reads, are no concern of the settings."""
    monkeypatch.setenv("HLOX", "1")
    monkeypatch.setenv("HLO_URL", "http://x")
    dotenv("HF_TOKEN=secret\nHLO_URL=http://x\n")
    assert load_settings() == Settings()


def test_lower_case_variables_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment names are the same in lower case."""
    monkeypatch.setenv("hlo_port", "77")
    assert load_settings().port == 77


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "many"),
        ("port", "65536"),
        ("port", ""),
        ("device", "tpu"),
        ("min_in_scope", "1.5"),
        ("min_probability", "-0.1"),
        ("background", "perhaps"),
        ("ambiguous", "neither"),
        ("gpu_memory_utilization", "0"),
        ("max_model_len", "-1"),
        ("quantize", "perhaps"),
        ("enforce_eager", "perhaps"),
        ("encoder_batch", "0"),
        ("log_level", "loud"),
    ],
)
@pytest.mark.parametrize("place", ["environment", ".env", "hlo.toml", "argument"])
def test_malformed_values_name_the_setting(name: str, value: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A malformed value is refused with the setting's name, the value, and what to do."""
    arguments = {}
    if place == "environment":
        monkeypatch.setenv(f"HLO_{name.upper()}", value)
    elif place == ".env":
        dotenv(f"HLO_{name.upper()}={value}\n")
    elif place == "hlo.toml":
        toml(**{name: value})
    else:
        arguments[name] = value
    with pytest.raises(SettingsError) as caught:
        load_settings(**arguments)
    assert name in caught.value.message.lower()
    assert repr(value) in caught.value.message
    assert caught.value.remedy


def test_broken_toml_names_the_file_and_line() -> None:
    """An `hlo.toml` that is not TOML is refused with its name and the line."""
    Path("hlo.toml").write_text("port = 1\nhost = = 2\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"`hlo\.toml` is not TOML: .*line 2"):
        load_settings()


def test_a_toml_file_with_line_ends_that_toml_has_not_is_refused() -> None:
    """A carriage return alone ends no line in TOML, though it does in a text file."""
    Path("hlo.toml").write_bytes(b"port = 80\r")
    with pytest.raises(SettingsError, match="is not TOML"):
        load_settings()


@pytest.mark.parametrize("file", ["hlo.toml", ".env"])
def test_a_file_that_is_not_utf8_is_refused(file: str) -> None:
    """A settings file in another encoding than UTF-8 is refused by name."""
    Path(file).write_bytes('HLO_HOST="ä"'.encode("latin-1"))
    with pytest.raises(SettingsError, match=file):
        load_settings()


def test_a_table_in_toml_is_refused() -> None:
    """A table where a value was wanted is refused with the setting's name."""
    Path("hlo.toml").write_text("[port]\nx = 1\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="`port`"):
        load_settings()


def test_settings_are_frozen() -> None:
    """Nothing changes a setting once it is read."""
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1


def test_every_setting_is_described() -> None:
    """Every setting has a description: it is the help of the command line."""
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_names_lists_every_variable() -> None:
    """`names()` holds an HLO_ name for every setting, the three original names, and nothing else."""
    own = {f"HLO_{name.upper()}" for name in Settings.model_fields}
    assert set(names()) == own | {"MODEL_NAME", "ADAPTER_PATH", "QUANTIZE"}
    assert len(names()) == len(set(names()))


@pytest.mark.parametrize(
    ("given", "servers"),
    [
        ("http://a:8000/, https://b/vllm ,http://a:8000", ("http://a:8000", "https://b/vllm")),
        ("", ()),
    ],
)
def test_addresses_are_separated_by_commas(
    given: str, servers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """HLO_ENGINE_URLS holds addresses with commas between; what is named twice counts once."""
    monkeypatch.setenv("HLO_ENGINE_URLS", given)
    found = load_settings()
    assert found.servers == servers
    assert found.generates_elsewhere == bool(servers)


@pytest.mark.parametrize("given", ["gpu-1:8000", "ftp://a", "http://", "http://a?b=c", "http://user:secret@a:8000"])
def test_an_address_is_of_a_server(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no address of an HTTP server, or holds a password, is refused."""
    monkeypatch.setenv("HLO_ENGINE_URLS", given)
    with pytest.raises(SettingsError, match="engine_urls"):
        load_settings()
