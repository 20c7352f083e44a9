"""Model hubs: references to what lies there, the lock file that pins it, and the local cache.

The only importer of huggingface_hub, whose own environment variables say where the hub and the cache are and how to
reach them: HF_ENDPOINT, HF_TOKEN, HF_HOME or HF_HUB_CACHE, HF_HUB_OFFLINE, HF_HUB_DISABLE_XET, HTTPS_PROXY.
"""

from __future__ import annotations

from hlo.hub.cache import Hub, Plan, Remote, Snapshot
from hlo.hub.lock import Lock, Locked, LockedFile
from hlo.hub.reference import SCHEME, Reference

__all__ = ["SCHEME", "Hub", "Lock", "Locked", "LockedFile", "Plan", "Reference", "Remote", "Snapshot"]
