"""Average the weights of potentials that were trained on from the same one, and measure the errors of the result.

    python average.py base.safetensors:2 one.safetensors:1 two.safetensors:1 --test tests.h5 --out potential.safetensors

The number behind a colon is a potential's share. Weights between a start and what fine-tuning made of it keep more of
what the start knew than the latter, and most of what was learned (Wortsman et al. 2022, arXiv:2109.01903). Needs
ponita_ff. The file records the potentials averaged; its training record is that of the last one. ``parity.png`` lies
beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ponita_ff.data import file_sha256, read_frames
from ponita_ff.potential.file import load_potential, read_header, save_potential
from ponita_ff.training.evaluate import evaluate
from ponita_ff.training.plots import plot_parity


def main() -> None:
    """Write the average."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("potentials", nargs="+", metavar="FILE:SHARE")
    parser.add_argument("--test", type=Path, required=True, help="labelled frames")
    parser.add_argument("--level", default="ωB97X/6-31G(d)", help="level of theory (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    files = [Path(text.rpartition(":")[0]) for text in args.potentials]
    shares = [float(text.rpartition(":")[2]) for text in args.potentials]
    members = [load_potential(file) for file in files]
    last = members[-1]
    kept = ("species", "scale", "cutoff", "zbl_cutoff")
    for file, member in zip(files, members, strict=True):
        if member.network.config != last.network.config or any(getattr(member, k) != getattr(last, k) for k in kept):
            raise SystemExit(f"{file} has another network, or another {', '.join(kept)}, than {files[-1]}")
    states = [member.state_dict() for member in members]
    mean = {
        name: sum(share * state[name] for share, state in zip(shares, states, strict=True)) / sum(shares)
        if value.is_floating_point()
        else value
        for name, value in states[-1].items()
    }
    last.load_state_dict(mean)
    # Statistics of the most training frames.
    last.domain = max((member.domain for member in members if member.domain), key=lambda one: one.frames, default=None)
    last.metadata["average_of"] = [
        {"file": file.name, "share": share / sum(shares), "weights_sha256": read_header(file)["weights_sha256"]}
        for file, share in zip(files, shares, strict=True)
    ]
    last.metadata["level_of_theory"] = args.level
    result = evaluate(last, read_frames(args.test))
    plot_parity(result, "test frames", args.out.with_name("parity.png"))
    errors = result.errors
    last.metadata["errors"] = {"test": errors.as_dict()}
    data = {"test": errors.frames, "test_file": args.test.name, "test_sha256": file_sha256(args.test)}
    last.metadata["data"] = last.metadata.get("data", {}) | data
    save_potential(last, args.out)
    print(f"{args.out}: {errors}")


if __name__ == "__main__":
    main()
