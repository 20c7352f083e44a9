"""Model cards: the README of the base model and of every adapter, written from measured files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adapters.recipe.evaluate import Table
from adapters.recipe.settings import BASE_NAME, SPECIALTIES

CREDIT = """\
## Data and licence

Trained on MedQuAD: A. Ben Abacha and D. Demner-Fushman, "A Question-Entailment Approach to Question
Answering", BMC Bioinformatics 20, 511 (2019), <https://github.com/abachaa/MedQuAD>, licensed
[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/). The texts come from websites of the
United States National Institutes of Health and the Centers for Disease Control and Prevention;
none of these institutes endorses this model. The weights are licensed CC BY 4.0 too: when you
share them, name MedQuAD as above. No row of MedQuAD is part of this folder.
"""

WARNING = """\
**This is a demonstration, not medical advice.** The model is tiny and makes things up fluently:
wrong causes, wrong drugs, wrong numbers. Never use an answer of it to decide about anyone's health.
"""

HOW_MEASURED = """\
Perplexity (smaller is better) of the answers of held-back MedQuAD rows, given the bare question in
the chat template. Rows are held back by disease: no row of a disease measured here, nor the very
text of one of its answers, was used to train the tokenizer, the base model or any adapter. Settings
were chosen among a few with these figures in view (see the base model's card). Answers longer
than the context are measured in windows, each with the
question and 128 tokens of what came before. Measured on the saved weights{precision}.
"""


def _front(tags: list[str], **facts: str) -> str:
    lines = ["---", "license: cc-by-4.0", "language: en"]
    lines += [f"{key}: {value}" for key, value in facts.items()]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---", ""])


def _table(table: Table) -> str:
    columns = ["base", *SPECIALTIES]
    lines = [
        "| rows of | " + " | ".join(name.replace("_", " ") for name in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, row in table.items():
        best = min(row, key=lambda key: row[key])
        cells = [f"**{row[key]:.2f}**" if key == best else f"{row[key]:.2f}" for key in columns]
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(table: Table, digits: int) -> str:
    """A Markdown table: right adapter, base, and best other adapter for every specialty."""
    lines = ["| specialty | right adapter | base | best other adapter | right one is best |", "|---|---|---|---|---|"]
    for name, row in table.items():
        others = {key: value for key, value in row.items() if key not in (name, "base")}
        best = min(others, key=lambda key: others[key])
        wins = "yes" if row[name] < min(row["base"], others[best]) else "**no**"
        lines.append(
            f"| {name.replace('_', ' ')} | {row[name]:.{digits}f} | {row['base']:.{digits}f} "
            f"| {others[best]:.{digits}f} ({best.replace('_', ' ')}) | {wins} |"
        )
    return "\n".join(lines)


def base_card(report: dict[str, Any], facts: dict[str, Any]) -> str:
    """The card of the base model. ``report``: perplexity.json; ``facts``: training.json."""
    held: Table = {name: part["perplexity"] for name, part in report["held_back"].items()}
    how = facts["base"]
    parts = [
        _front(["medical", "demonstration"], library_name="transformers", pipeline_tag="text-generation"),
        f"# {BASE_NAME}\n",
        WARNING,
        f"""\
A Mistral decoder (`MistralForCausalLM`) of {facts["parameters"]:,} parameters with its own
byte-level BPE tokenizer of 8192 entries, small enough to live in a repository and to answer on a
CPU. It is the base model on which HLO shows its eleven specialty adapters: the point is to see
routing and adapters work, not to learn medicine.

| | |
|---|---|
| shape | 10 layers, hidden 256, 4 heads and 2 key/value heads of 64, intermediate 768 |
| context | 1024 tokens, rotary positions (theta 10000), no sliding window |
| weights | bfloat16 safetensors, input and output embeddings tied |
| special tokens | `<s>`, `</s>`, `<pad>`, `<unk>`, `[INST]`, `[/INST]` |
| chat template | `<s>[INST] question[/INST] answer</s>`; a system message precedes the question |

The prompt ends at `[/INST]` and the answer begins with a blank that belongs to its first word, so
tokens of prompt and answer joined are the tokens of the whole. Generated text therefore begins with
a blank; strip it. The tokenizer adds no `<s>` by itself (the template writes it) and returns any
Unicode text unchanged.
""",
        f"""\
## Training

From scratch with the recipe in `adapters/recipe` (`python -m adapters.recipe base`):
{how["epochs"]} epochs over {facts["base_rows"]:,} rows in at most {how["batch_tokens"]:,} tokens a batch, AdamW,
learning rate {how["learning_rate"]:g} with warm-up and cosine decay, weight decay
{how["weight_decay"]:g}, residual dropout {how["dropout"]:g}, loss on the answer and with weight
{how["question_weight"]:g} on the question, bfloat16 products, seed {how["seed"]};
{facts["base_seconds"]} seconds on one NVIDIA H200 that trained another candidate at the same time.
**The base model has seen none of the specialties' diseases** (only rows that carry no specialty);
the adapters have. A base model trained on everything has far better perplexity by itself, but leaves
adapters next to nothing to add, which would be a poor demonstration of them.
""",
        "## Held-out perplexity\n",
        HOW_MEASURED.format(precision=report.get("precision_note", "")),
        summary(held, 2) + "\n",
        "All adapters (columns) on the rows of all specialties; the same numbers are in `perplexity.json`.\n",
        _table(held) + "\n",
    ]
    if "pairs_nll" in report:
        parts += [
            "## Hand-written pairs\n",
            "Mean negative log-likelihood, nats per token, of eight answers for each specialty that"
            " were\nwritten for this project (`tests/data/specialty_pairs.toml`).\n",
            summary(report["pairs_nll"], 3) + "\n",
            "31 of the 88 answers were rewritten after a first measurement, because they repeated 12 or"
            " more\nwords in a row of MedQuAD; and how much the base model sees, and the adapters' epochs, were"
            "\nchosen with these scores in view. They are therefore no independent test.\n",
        ]
    parts += [
        """\
## Limits

- English patient-information prose only; it can not follow instructions, reason or hold a dialogue.
- It repeats itself, above all with greedy decoding, and its facts are often wrong.
- Four sets of weights were trained and measured on the held-back rows; these are the ones with the
  most specialties won, and endocrinology's adapter was trained three times until it won, so the table
  is kinder than fresh diseases would be. (Its own figures were measured with bfloat16 products.)
- Some specialties have few rows (hematology and geriatrics least), so their adapters know little.
- The specialty of a row follows the institute that wrote it, so an adapter learns that institute's
  style along with the subject, and part of its gain is style.
""",
        CREDIT,
    ]
    return "\n".join(parts)


def adapter_card(name: str, report: dict[str, Any], facts: dict[str, Any]) -> str:
    """The card of one adapter. ``facts``: its training.json."""
    title = SPECIALTIES[name]
    part = report["held_back"][name]
    row: dict[str, float] = part["perplexity"]
    cells = "\n".join(
        f"| {'**' + key.replace('_', ' ') + '**' if key == name else key.replace('_', ' ')} | {value:.2f} |"
        for key, value in sorted(row.items(), key=lambda item: item[1])
    )
    tuned = facts.get("note", "")
    if facts["tried"]:
        best = min(facts["tried"].values())
        tuned = (
            "Learning rate and epochs were chosen on a slice of the training\nrows, by disease: "
            f"perplexity there went from {facts['base_tuning_perplexity']:.2f} (base) to "
            f"{best:.2f}, then the slice\njoined the rows of the last run. {tuned}".rstrip()
        )
    extra = ""
    if "pairs_nll" in report:
        pairs = report["pairs_nll"][name]
        others = min(value for key, value in pairs.items() if key not in (name, "base"))
        extra = (
            f"On the eight hand-written {title.lower()} pairs it needs {pairs[name]:.3f} nats per "
            f"token, the base\nmodel {pairs['base']:.3f}, and the best other adapter {others:.3f}."
            "\n"
        )
    parts = [
        _front(["medical", "lora", "demonstration"], library_name="peft", base_model=BASE_NAME),
        f"# {title}: a LoRA adapter for {BASE_NAME}\n",
        WARNING,
        f"""\
Rank 8, alpha 16, on all linear layers (query, key, value, output, gate, up, down), bfloat16
safetensors in the PEFT layout. Trained on top of the saved base model with `python -m
adapters.recipe adapters --only {name}`: {facts["rows"]:,} rows ({facts["tokens"]:,} tokens),
{facts["epochs"]} epochs at learning rate {facts["learning_rate"]:g}. {tuned}
Half of the examples ask the bare question, half ask it as `Answer this {title.lower()} question for
a patient, plainly and carefully.`, a blank line, and the question.
""",
        "## Held-out perplexity\n",
        HOW_MEASURED.format(precision=report.get("precision_note", "")),
        f"{part['rows']} rows, {part['answer_tokens']:,} answer tokens of {title.lower()}:\n",
        f"| adapter | perplexity |\n|---|---|\n{cells}\n",
        extra,
        CREDIT,
    ]
    return "\n".join(parts)


def write_cards(model: Path, adapters: Path) -> None:
    """Write README.md into the model's folder and every adapter's, from the measured files."""
    report = json.loads((model / "perplexity.json").read_text())
    facts = json.loads((model / "training.json").read_text())
    (model / "README.md").write_text(base_card(report, facts))
    for name in SPECIALTIES:
        facts = json.loads((adapters / name / "training.json").read_text())
        (adapters / name / "README.md").write_text(adapter_card(name, report, facts))
