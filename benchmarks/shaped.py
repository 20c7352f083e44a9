"""HLO over a model of a given shape with many specialties: no weights, no network, nothing to install.

Effects are not checked: in a model that vLLM filled in, layers without weights to speak of, no adapter shows one.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks import shapes
from hlo import assemble
from hlo.assemble import Runtime
from hlo.catalog import Entry
from hlo.contracts import Engine
from hlo.settings import Settings, load_settings
from hlo.telemetry.metrics import Metrics

_TOPICS = (
    "asthma, migraine, gout, psoriasis, epilepsy, glaucoma, anaemia, appendicitis, tuberculosis, malaria, "
    "measles, hepatitis, cirrhosis, pancreatitis, gallstones, kidney stones, cystitis, prostate cancer, breast "
    "cancer, melanoma, leukaemia, lymphoma, angina, atrial fibrillation, heart failure, varicose veins, "
    "stroke, Parkinson's disease, multiple sclerosis, dementia, schizophrenia, depression, insomnia, sleep "
    "apnoea, bronchitis, pneumonia, cystic fibrosis, diabetes, hypothyroidism, osteoporosis, rheumatoid "
    "arthritis, lupus, scoliosis, carpal tunnel, tennis elbow, hip fracture, cataract, conjunctivitis, "
    "tinnitus, sinusitis, tonsillitis, tooth decay, acne, eczema, shingles, ringworm, hay fever, peanut "
    "allergy, endometriosis, menopause, pre-eclampsia, infertility, autism, obesity"
)
TOPICS = tuple(topic.strip() for topic in _TOPICS.split(","))
_PLUGIN = "shaped"


def specialty(number: int) -> str:
    """The name of a specialty."""
    return f"topic_{number:03}"


def template(number: int) -> str:
    """A specialty's template: some 75 tokens that are the same for all of its questions."""
    return (
        f"You are the specialist for {TOPICS[number % len(TOPICS)]} in a large hospital. Answer briefly and plainly, "
        "in words that a patient understands; name what is urgent first, what can wait, and whom to see about it. "
        "Say so where you do not know something, and never name a dose of a medicine. "
        "Question: {{ question }}"
    )


def question(number: int, turn: int) -> str:
    """A question of a specialty that nobody asked before, of some 55 tokens."""
    topic = TOPICS[number % len(TOPICS)]
    return (
        f"{turn}: I was told that I have {topic}. How is {topic} treated, what makes {topic} worse, and what should "
        f"I do when my {topic} comes back at night? My doctor said that {topic} runs in families."
    )


@contextmanager
def installed(folder: Path, config: dict[str, Any], specialties: int, *, rank: int = 16) -> Iterator[Path]:
    """Make model, adapters and a plugin with that many specialties in `folder`; gives the model's folder."""
    model = shapes.model(folder / "shape", config)
    adapters = shapes.adapters(folder / "adapters", config, specialties, rank=rank)
    site = folder / "site"
    info = site / f"hlo_{_PLUGIN}-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: hlo-{_PLUGIN}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hlo]\n{_PLUGIN} = hlo_{_PLUGIN}\n")
    offers = [
        {"name": specialty(one), "adapter": str(path), "template": template(one), "examples": _examples(one)}
        for one, path in enumerate(adapters)
    ]
    (site / "offers.json").write_text(json.dumps(offers))
    (site / f"hlo_{_PLUGIN}.py").write_text(
        "import json, pathlib\n"
        "from hlo import Adapter, Specialty, hookimpl\n\n\n"
        "@hookimpl\n"
        "def hlo_specialties():\n"
        "    offers = json.loads((pathlib.Path(__file__).parent / 'offers.json').read_text())\n"
        "    return [Specialty(one['name'], one['name'], Adapter(one['adapter']), one['template'],\n"
        "                      examples={'patients': tuple(one['examples'])}) for one in offers]\n"
    )
    sys.path.insert(0, str(site))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(site), before)))
    try:
        yield model
    finally:
        sys.path.remove(str(site))
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def settings(model: Path, **more: Any) -> Settings:
    """Settings for a model that vLLM fills in; no plugin but the one that `installed` made."""
    arguments = {"load_format": "dummy", **more.pop("engine_arguments", {})}
    given = {"cache_dir": model.parent / "cache", "log_level": "warning", "max_queued_requests": 4096, **more}
    return load_settings(model=str(model), plugins=_PLUGIN, port=0, engine_arguments=arguments, **given)


async def start(wanted: Settings) -> Runtime:
    """Start HLO, as `hlo serve` does, but for the check that each adapter has an effect."""

    async def only_load(entry: Entry, engine: Engine, *_: object) -> float:
        await engine.load(entry.adapter)
        return 0.0

    with patch.object(assemble, "show_effect", only_load):
        runtime = await assemble.assemble(wanted, Metrics(), lambda stage: print(stage, flush=True))
    refused = runtime.pipeline.catalog.refusals
    if refused:
        await runtime.close()
        raise RuntimeError(f"{refused[0].specialty} was refused: {refused[0].reason}")
    await asyncio.sleep(0)
    return runtime


def engine(runtime: Runtime) -> Any:
    """The engine itself, inside what restarts it should it die."""
    supervised: Any = runtime.pipeline.engine
    return supervised._engine


def _examples(number: int) -> list[str]:
    topic = TOPICS[number % len(TOPICS)]
    return [
        question(number, 0).partition(": ")[2],
        f"How is {topic} treated?",
        f"I was told that I have {topic}. What makes it worse?",
        f"What should I do when my {topic} comes back at night?",
    ]
