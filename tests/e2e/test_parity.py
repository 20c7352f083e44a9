"""The engine says what PEFT says: base and every adapter, alone and mixed in one batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.reference import BASE, Reference
from tests.e2e.server import Server
from tests.e2e.test_answers import ASKED, SPECIALTIES

PROMPTS = tuple(f"<s>[INST] {ASKED[name]} [/INST]" for name in ("cardiology", "oncology", "neurology"))
TOKENS = 40


@pytest.fixture(scope="module")
def reference() -> Reference:
    """PEFT with every adapter."""
    return Reference(SPECIALTIES)


def test_greedy_outputs_equal_pefts_alone_and_mixed(server: Server, reference: Reference) -> None:
    """For each prompt, base and all adapters generate what PEFT does; also when all of them share one batch."""
    work = [(prompt, adapter) for prompt in PROMPTS for adapter in [BASE, *SPECIALTIES]]
    wanted = [reference.greedy(prompt, adapter, TOKENS) for prompt, adapter in work]

    def ask(one: tuple[str, str]) -> str:
        body = {"prompt": one[0], "adapter": one[1], "max_tokens": TOKENS}
        return str(server.post("/generate", body).json()["text"])

    alone = [ask(one) for one in work]
    with ThreadPoolExecutor(len(work)) as pool:
        mixed = list(pool.map(ask, work))
    assert alone == wanted
    assert mixed == wanted
    for prompt in range(len(PROMPTS)):
        texts = wanted[prompt * (len(SPECIALTIES) + 1) : (prompt + 1) * (len(SPECIALTIES) + 1)]
        assert len(set(texts)) > len(SPECIALTIES) // 2, "the adapters must not all say the same"
