"""The package: what indexes and installers read of it, its licences, and its size."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

import hlo
from hlo.testing.conformance.bench import Bench, Told, ok, trouble, warning
from hlo.testing.subject import Subject, field, normal

PYPI_MIB = 100
"""The largest file that PyPI takes, unless one asks for more."""


def metadata(bench: Bench) -> Iterator[Told]:
    """Name, version, and what an index and an installer read."""
    subject, of = bench.subject, bench.subject.distribution
    faults = [
        *_name_and_version(subject),
        *_python(subject),
        *_requirements(subject),
        *_overwritten(subject),
        *_missing(subject),
    ]
    yield from faults
    if not faults:
        yield ok(f"{subject.name} {subject.version}: {field(of, 'Summary')}")


def _name_and_version(subject: Subject) -> Iterator[Told]:
    name = normal(subject.name)
    if not name.startswith("hlo-"):
        yield warning(f"The package is called `{subject.name}`.", f"Call it `hlo-{name}`, so that people find it.")
    if "version" not in subject.dynamic:
        try:
            Version(subject.version)
        except InvalidVersion:
            yield trouble(
                f"`{subject.version}` is no version (PEP 440); no installer takes it.", "Write one such as 0.1.0."
            )


def _python(subject: Subject) -> Iterator[Told]:
    wanted, here = field(subject.distribution, "Requires-Python"), platform.python_version()
    try:
        fits = SpecifierSet(wanted).contains(here, prereleases=True)
    except InvalidSpecifier:
        yield trouble(f"Requires-Python `{wanted}` is no range of versions.", 'Write ">=3.11".')
    else:
        if not fits:
            yield trouble(
                f"It asks for Python {wanted}; this is {here}.", "Install HLO on such a Python, or widen the range."
            )


def _requirements(subject: Subject) -> Iterator[Told]:
    if "dependencies" in subject.dynamic:
        return
    ours = []
    for line in subject.distribution.requires or ():
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            yield trouble(f"`{line}` is no requirement (PEP 508).", "Mend it.")
            continue
        if normal(requirement.name) == "hlo" and "extra" not in str(requirement.marker):
            ours.append(requirement)
    if not ours:
        yield warning("It does not require `hlo`.", 'Write `dependencies = ["hlo"]`.')
    for requirement in ours:
        if not requirement.specifier.contains(hlo.__version__, prereleases=True):
            yield trouble(f"It requires `{requirement}`; this is HLO {hlo.__version__}.", "Widen the range.")


def _overwritten(subject: Subject) -> Iterator[Told]:
    """Modules in a wheel that belong to other packages, or to Python: installing it would break those."""
    if subject.kind != "wheel":
        return
    inside = {path for folder in subject.code for path in folder.iterdir()}
    owners = packages_distributions()
    for name in sorted({path.name.removesuffix(".py") for path in inside if path.is_dir() or path.suffix == ".py"}):
        others = {normal(owner) for owner in owners.get(name, ())} - {normal(subject.name)}
        if name in sys.stdlib_module_names:
            others.add("Python")
        if name == "hlo":  # also where HLO is installed so that its modules are in no list
            others.add("hlo")
        if others:
            yield trouble(
                f"`{name}` would be overwritten; it belongs to {', '.join(sorted(others))}.",
                "Put all modules of the plugin into a package of its own.",
            )


def _missing(subject: Subject) -> Iterator[Told]:
    of, dynamic = subject.distribution, subject.dynamic
    if not field(of, "Summary") and "description" not in dynamic:
        yield warning("The metadata has no Summary.", "Give it a line.")
    if not field(of, "Requires-Python") and "requires-python" not in dynamic:
        yield warning("The metadata has no Requires-Python.", "Give it the Pythons it runs on.")
    if not field(of, "Description") and "readme" not in dynamic:
        yield warning("The package has no readme.", "Say in it what the specialty is for.")
    if dynamic:
        yield warning(f"Only a build decides {', '.join(sorted(dynamic))}.", "Examine the wheel to see them too.")


def licence(bench: Bench) -> Iterator[Told]:
    """The package's licence, and the one on each adapter's card."""
    of = bench.subject.distribution
    expression = field(of, "License-Expression")
    if expression:
        try:
            yield ok(f"package: {canonicalize_license_expression(expression)}")
        except InvalidLicenseExpression:
            yield warning(f"`{expression}` is no SPDX licence expression.", "See spdx.org/licenses.")
    elif "license" not in bench.subject.dynamic:  # which the metadata's findings tell
        said = " but for the old field License" if field(of, "License") else ""
        yield warning(f"The package names no licence{said}.", 'Write `license = "Apache-2.0"` (PEP 639).')
    for specialty, located, _ in bench.sound():
        card = located.folder / "README.md"
        if said := _card_licence(card):
            yield ok(f"adapter of `{specialty.name}`: {said}")
        else:
            missing = "has no `license:` in its front matter" if card.is_file() else "is not there"
            yield warning(f"`{specialty.name}`: the adapter's card, README.md, {missing}.", "Say it between `---`.")


def _card_licence(card: Path) -> str:
    """The licence in a card's YAML front matter; empty when there is none."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    said = re.search(r"^license:[ \t]*(\S.*?)[ \t]*$", head[1], re.MULTILINE) if head else None
    return said[1].strip("'\"") if said else ""


def size(bench: Bench) -> Iterator[Told]:
    """Whether the package can be uploaded to an index."""
    mib = 2**20
    archive = bench.subject.archive
    wheel = archive.stat().st_size / mib if archive else 0.0
    adapters = [(version.size / mib, specialty.adapter.package) for specialty, _, version in bench.sound()]
    uploaded = max(wheel, sum(one for one, package in adapters if package))
    if uploaded > PYPI_MIB:
        yield warning(
            f"The package has {uploaded:,.0f} MiB; PyPI takes {PYPI_MIB}, unless one asks for more.",
            'Put the adapter on a model hub, and refer to it with `Adapter("hf://org/name@commit")`.',
        )
    elif adapters or archive:
        told = f", the wheel {wheel:,.1f} MiB" if archive else ""
        yield ok(f"adapters {sum(one for one, _ in adapters):,.1f} MiB{told}")
