"""What can go wrong with a model hub, in words that say what to do: huggingface_hub's errors told as `HubError`."""

from __future__ import annotations

import errno
from pathlib import Path

from hlo.errors import HubError
from hlo.hub.reference import Reference


class Unreachable(HubError):
    """No hub answers; what is in the cache may still do."""


def explain(reference: Reference, error: Exception, url: str, cache: Path) -> HubError:
    """Say what went wrong between the hub at `url` and its cache; the reason may be the cause of what was raised."""
    from huggingface_hub import errors

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)

    def first(*kinds: type[BaseException]) -> BaseException | None:
        return next((one for one in chain if isinstance(one, kinds)), None)

    repo = f"{url}/{reference.repo}"
    if first(errors.OfflineModeIsEnabled):
        return Unreachable(
            f"{reference} is not in the cache `{cache}`, and HF_HUB_OFFLINE forbids to ask the hub.",
            remedy="Fetch it with `hlo models fetch` where there is a network, or unset HF_HUB_OFFLINE.",
        )
    if first(errors.GatedRepoError):
        return HubError(
            f"{reference} is gated: the hub asks for its terms to be accepted.",
            remedy=f"Accept them at {repo}, and set HF_TOKEN to a token of that account.",
        )
    if first(errors.RevisionNotFoundError):
        return HubError(
            f"{reference.repo} has no revision `{reference.revision or 'main'}` on {url}.",
            remedy=f"Look at {repo}/commits for those that it has.",
        )
    if first(errors.RepositoryNotFoundError):
        return HubError(
            f"{url} has no repository `{reference.repo}`, or it is private.",
            remedy="Check the name; for a private one, set HF_TOKEN to a token that may read it.",
        )
    if (answer := first(errors.HfHubHTTPError)) is not None:
        return _refused(reference, answer.response.status_code, url)  # type: ignore[attr-defined]
    full = next((one for one in chain if getattr(one, "errno", None) in (errno.ENOSPC, errno.EDQUOT)), None)
    if full is not None:
        return HubError(
            f"The disk of the cache `{cache}` is full; {reference} was not fetched in full.",
            remedy="Free some, or set HF_HOME to a folder on a larger disk; then fetch again.",
        )
    why = f"{type(chain[-1]).__name__}: {chain[-1]}"
    # Its HTTP client is another library from version 2 on; both times its error is imported there.
    if first(errors.HTTPError, ConnectionError, TimeoutError, errors.RevisionResolutionError):  # type: ignore[attr-defined]
        return Unreachable(
            f"{url} can not be reached ({why}), and the cache `{cache}` does not hold {reference}.",
            remedy="Check the network, HTTPS_PROXY and HF_ENDPOINT; or fetch it elsewhere and copy the cache.",
        )
    return HubError(
        f"{reference} can not be fetched into `{cache}`: {why}.",
        remedy="Check that this user may write there, and fetch again.",
    )


def _refused(reference: Reference, status: int, url: str) -> HubError:
    """What an HTTP status of the hub means."""
    if status in (401, 403):
        return HubError(
            f"{url} refuses access to {reference} (HTTP {status}).",
            remedy="Set HF_TOKEN to a token that may read it; is the present one expired?",
        )
    if status == 404:
        return HubError(f"{url} does not have {reference} (HTTP 404).", remedy="Check the reference.")
    kind = Unreachable if status >= 500 or status == 429 else HubError
    return kind(f"{url} answered HTTP {status} for {reference}.", remedy="Try again later.")
