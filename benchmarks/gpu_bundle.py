"""The packages that a machine with a GPU and a stock PyTorch lacks, in a folder to copy there with this checkout.

    python benchmarks/gpu_bundle.py --python 3.12
    # there, in the checkout; nothing is fetched or installed:
    export PYTHONPATH=$PWD:$PWD/gpu-bundle-out
    python3 benchmarks/gpu.py --out gpu-out
    python3 benchmarks/gpu_train.py run rmd17.npz benchmarks/gpu_jobs/rmd17.yaml --minutes 6 --out gpu-out

That machine has PyTorch with Triton, torch-geometric, numpy, SciPy, matplotlib, h5py, safetensors, click, Jinja,
PyYAML, TensorBoard and tqdm; ``--also`` names what else it lacks. The folder is for one version of Python on Linux,
x86-64.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import click

#: Without their dependencies, which are there.
ALONE = ("ase", "matscipy")

#: With their dependencies, which are small.
WHOLE = ("pydantic",)

#: Folders of the packages that nothing here needs.
UNUSED = ("ase/test", "ase/gui/po", "bin")

#: Largest bundle, MB; the checkout and packed frames travel beside it.
LIMIT = 24.0

PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_27_x86_64", "manylinux_2_28_x86_64")


def install(packages: tuple[str, ...], python: str, out: Path, dependencies: bool) -> None:
    """Put packages into a folder, as wheels for that Python are.

    Raises:
        ClickException: Where pip cannot.
    """
    platforms = [argument for name in PLATFORMS for argument in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(out), "--no-compile"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]
    command += [*([] if dependencies else ["--no-deps"]), *packages]
    if subprocess.run(command, check=False).returncode:
        raise click.ClickException(f"pip could not fetch {', '.join(packages)} for Python {python}; see above")


def size_mb(folder: Path) -> float:
    """Size of all files in a folder, MB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


@click.command(help=__doc__.split("\n\n")[0] if __doc__ else "")
@click.option("--python", default="3.12", show_default=True, help="Version of Python of the machine with the GPU.")
@click.option("--out", type=click.Path(path_type=Path), default="gpu-bundle-out", show_default=True)
@click.option("--also", multiple=True, help="Further packages, without dependencies.")
def main(python: str, out: Path, also: tuple[str, ...]) -> None:
    """Make the folder."""
    install((*ALONE, *also), python, out, dependencies=False)
    install(WHOLE, python, out, dependencies=True)
    for folder in UNUSED:
        shutil.rmtree(out / folder, ignore_errors=True)
    size = size_mb(out)
    if size > LIMIT:
        raise click.ClickException(f"{out} has {size:.0f} MB, more than {LIMIT:.0f}: leave packages of --also out")
    click.echo(f"{out}: {size:.0f} MB; there, in the checkout:")
    place = out if out.is_absolute() else f"$PWD/{out}"
    click.echo(f"PYTHONPATH=$PWD:{place} python3 benchmarks/gpu.py --out gpu-out")


if __name__ == "__main__":
    main()
