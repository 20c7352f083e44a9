"""Who may import whom, read from the source."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hlo

ROOT = Path(hlo.__file__).parent
# From the highest to the lowest; the members of one line are equals and never import each other.
LAYERS = (
    ("cli",),
    ("service", "testing"),
    ("reload", "scaffold"),
    ("assemble",),
    ("engines",),
    ("pipeline",),
    ("screening",),
    ("edition",),
    ("routing", "generation", "telemetry", "plugins", "catalog"),
    ("hookspecs",),
    ("contracts", "settings", "hub", "keys", "deadline"),
    ("records", "errors", "logs", "threads"),
)
RANK = {part: number for number, layer in enumerate(LAYERS) for part in layer}
FACE = ("__init__", "__main__")
# Only what stands above every module that the face imports may import the face.
ABOVE_THE_FACE = ("cli", "service", "testing", "reload", "assemble", "pipeline")
ONE_IMPORTER: dict[str, str | tuple[str, ...]] = {
    "vllm": "generation/vllm_engine/",
    "triton": "generation/lora_kernels/",
    "sentence_transformers": "routing/sentence_encoder.py",
    "litestar": "service/",
    "opentelemetry.sdk": "telemetry/",
    "opentelemetry.exporter": "telemetry/",
    "transformers": ("generation/", "routing/sentence_encoder.py"),
    "onnxruntime": ("routing/onnx_encoder.py", "routing/onnx_export.py"),
    "tokenizers": ("generation/", "routing/onnx_encoder.py"),
    "scipy": "routing/",
    "huggingface_hub": "hub/",
    "bitsandbytes": "generation/quantize/writing.py",
    "peft": "generation/transformers_engine/lora.py",
    "uvicorn": "service/",
    "prometheus_client": "telemetry/",
    "jinja2": "generation/",
    "pydantic_settings": "settings.py",
    "click": "cli/",
    "rich": "cli/",
    "httpx": ("cli/", "generation/openai_engine/client.py"),
}
HEAVY = (
    "litestar",
    "numpy",
    "onnxruntime",
    "opentelemetry",
    "scipy",
    "sentence_transformers",
    "tokenizers",
    "torch",
    "transformers",
    "triton",
    "vllm",
)
MODULES = sorted(ROOT.rglob("*.py"))


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(source: str) -> Iterator[str]:
    """The dotted names of all that a module imports, wherever in it, also what is imported from `hlo` itself."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(path: Path) -> str:
    """The part of HLO that a file belongs to: its package or module right under `hlo`."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_reads_every_kind_of_import() -> None:
    """The reader of imports sees plain, dotted, renamed and nested ones."""
    source = "import a.b as c\nfrom d.e import f as g, h\ndef i():\n    from j import k\n    import l\n"
    assert sorted(imports(source)) == ["a.b", "d.e.f", "d.e.h", "j.k", "l"]


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_every_module_has_a_layer(path: Path) -> None:
    """Every module of HLO stands in a layer of the design, or is the face."""
    assert part(path) in RANK or part(path) in FACE


@pytest.mark.parametrize("path", [path for path in MODULES if part(path) not in FACE], ids=place)
def test_imports_point_downwards(path: Path) -> None:
    """A module imports only from its own part and from layers below it."""
    here = part(path)
    wrong = []
    for name in imports(path.read_text(encoding="utf-8")):
        if name == "hlo" or (name.startswith("hlo.") and name.split(".")[1] not in RANK):
            if here not in ABOVE_THE_FACE:
                wrong.append(f"{here} imports the face ({name})")
        elif name.startswith("hlo."):
            other = name.split(".")[1]
            if other != here and RANK[other] <= RANK[here]:
                wrong.append(f"{here} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("library", ONE_IMPORTER)
def test_heavy_libraries_have_one_importer(library: str) -> None:
    """Each heavy library is imported in one place."""
    allowed = ONE_IMPORTER[library]
    importers = [
        place(path)
        for path in MODULES
        if any(f"{name}.".startswith(f"{library}.") for name in imports(path.read_text(encoding="utf-8")))
    ]
    assert importers, f"nothing imports {library}: is this rule still needed?"
    assert [importer for importer in importers if not importer.startswith(allowed)] == []


@pytest.mark.parametrize("code", ["import hlo", "from hlo.cli import main", "import hlo.settings, hlo.catalog"])
def test_imports_are_light(code: str) -> None:
    """Importing the package or the command line loads no heavy library."""
    probe = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert sorted(set(json.loads(done.stdout)) & set(HEAVY)) == []


def test_help_is_light() -> None:
    """`hlo --help` loads no heavy library, so that it answers at once."""
    probe = (
        "import atexit, json, sys\n"
        "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
        "sys.argv = ['hlo', '--help']\n"
        "from hlo.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert "Usage: hlo" in done.stdout
    assert sorted(set(json.loads(done.stderr)) & set(HEAVY)) == []


def test_import_has_no_side_effect() -> None:
    """Importing the package changes no environment variable and no warnings filter, and starts no thread."""
    probe = (
        "import os, sys, threading, warnings\n"
        "before = dict(os.environ), list(warnings.filters), threading.active_count()\n"
        "import hlo\n"
        "assert (dict(os.environ), list(warnings.filters), threading.active_count()) == before\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_durations_are_measured_with_clocks_that_nobody_sets() -> None:
    """Nothing is reckoned from the wall clock, which jumps: it is read for the dates in OpenAI's objects alone."""
    read = {place(path) for path in MODULES if "time.time(" in path.read_text(encoding="utf-8")}
    assert read == {"service/openai.py", "service/state.py"}
