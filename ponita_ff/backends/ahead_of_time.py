"""Ahead-of-time compiled prediction: energy, forces and stress of one potential as machine code in a ``.pt2`` file.

``ponita-ff compile`` makes the file once, in a minute or two, with a C++ compiler; loading it takes a second or two and
needs no compiler. One file serves every number of atoms and of neighbours. It belongs to the potential, the version of
torch and the processor that it was made with; its metadata says so, and it is refused anywhere else. For what the
native backend can run (the force-field form in float32), the native backend is faster.

A ``.pt2`` file holds machine code, which runs with all the rights of its user. Metadata can be forged, so the hash of
every file that is made is also written into the cache folder, and a file without such a record is not loaded; nor is
one whose record somebody else could have written. Share the potential's file instead.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import platform
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ponita_ff.energy.derivatives import predict
from ponita_ff.energy.model import EnergyModel
from ponita_ff.files import write_atomically
from ponita_ff.kernels.build import KernelError, cache_folder
from ponita_ff.kernels.cache import check_private, make_private_folder
from ponita_ff.provenance import package_versions, weights_hash
from ponita_ff.structure.graph import INPUT_FIELDS, Graph

__all__ = [
    "AheadOfTimeError",
    "CompiledPrediction",
    "compile_ahead_of_time",
    "compiled_path",
    "is_compiled",
    "load_compiled",
]

#: Takes the tensors named by ``INPUT_FIELDS``, of one graph as ``build_graph`` makes it; returns energy (1,), atomic
#: energies (N,), eV, forces (N, 3), eV/Å, and stress (1, 3, 3), eV/Å³, which means nothing without a volume.
CompiledPrediction = Callable[[list[Tensor]], tuple[Tensor, ...]]

_FORMAT = "ponita_ff package 4"

#: As in compiled.py; and the number of threads is asked for when the code runs, not when it is made.
_OPTIONS = {"unroll_reductions_threshold": 16, "assert_indirect_indexing": False, "cpp.dynamic_threads": True}

#: Atoms of the example and neighbours of each. Sizes that are equal in the example are taken to be equal always: so
#: none is 1 or 3.
_ATOMS, _MAX_NEIGHBOURS = 23, 13

#: Smallest numbers of atoms and neighbours that compiled code may be given: torch treats 0 and 1 as special cases.
_FEWEST = 2


class AheadOfTimeError(ValueError):
    """Compiled code that cannot be made, is damaged, or was made for something else or by somebody else."""


def compiled_path(potential: Path) -> Path:
    """Path of the code compiled for a potential's file: beside it."""
    return potential.with_suffix(".pt2")


def is_compiled(path: Path) -> bool:
    """Whether a file is compiled code that this package wrote, of this version or another."""
    try:
        return _read_facts(path.read_bytes(), path)["format"].startswith(_FORMAT.rpartition(" ")[0])
    except (AheadOfTimeError, OSError, KeyError, AttributeError):
        return False


def compile_ahead_of_time(potential: EnergyModel, path: Path | str) -> None:
    """Compile a potential's prediction for this machine, and write it to a file.

    Args:
        potential: On the CPU, in the dtype and with the grid and rotations in which it will be used.
        path: Ends in ``.pt2``; see :func:`compiled_path`.

    Raises:
        ValueError: For a potential that is not on the CPU, or another ending.
        AheadOfTimeError: Where compiling fails, for want of a C++ compiler for example, or where others can write to
            the cache folder; no file is written.
        OSError: When the file, or the record of its hash, cannot be written; a file that was there is intact.
    """
    path = Path(path)
    if potential.device.type != "cpu":
        raise ValueError(f"code is compiled for the CPU, but the potential is on {potential.device}: move it first")
    if path.suffix != ".pt2":
        raise ValueError(f"the path of compiled code must end in .pt2, got {path}")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "package.pt2"
        try:
            _compile(copy.deepcopy(potential).eval().requires_grad_(False), made)
        except Exception as error:  # whatever a compiler tool-chain throws
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise AheadOfTimeError(f"could not compile the potential: {reason}") from error
        _write_record(made.read_bytes())
        write_atomically(path, lambda temporary: shutil.copyfile(made, temporary))


def load_compiled(potential: EnergyModel, path: Path | str) -> CompiledPrediction:
    """The prediction of a potential from its compiled code, after checking that it fits and was made here.

    What the code was not compiled for (several structures, a single atom or neighbour) runs eagerly.

    Args:
        potential: What it was compiled from; it must not change afterwards.
        path: The file.

    Raises:
        FileNotFoundError: When there is no such file.
        AheadOfTimeError: When it is damaged, made for other weights, settings, torch or machine, or not made by this
            user; the message says which.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no compiled code {path}")
    content = path.read_bytes()
    _check_facts(_read_facts(content, path), _facts(potential), path)
    _check_record(content, path)
    compiled = _load(content, path)
    plain = _predictor(potential, for_compile=False)

    def run(tensors: list[Tensor]) -> tuple[Tensor, ...]:
        if not _covered(tensors):
            return plain(*tensors)
        return tuple(compiled(*(tensor.contiguous() for tensor in tensors)))

    return run


_ANEW = "make it again with 'ponita-ff compile'"


def _record(content: bytes) -> Path:
    """A file that exists if this user compiled code with this content."""
    return cache_folder() / "packages" / hashlib.sha256(content).hexdigest()


def _write_record(content: bytes) -> None:
    record = _record(content)
    try:
        for folder in (record.parents[1], record.parent):
            make_private_folder(folder)
        record.touch(mode=0o600)
        check_private(record)
    except KernelError as error:
        raise AheadOfTimeError(str(error)) from None


def _check_record(content: bytes, path: Path) -> None:
    """Refuse code without a record, or with one that somebody else could have put there."""
    record = _record(content)
    if not record.is_file():
        raise AheadOfTimeError(f"{path} was not compiled by this user on this machine, and is not run: {_ANEW}")
    try:
        for place in (record.parents[1], record.parent, record):
            check_private(place)
    except KernelError as error:
        raise AheadOfTimeError(f"{path} is not run, since its record may be somebody else's: {error}") from None


def _load(content: bytes, path: Path) -> Callable[..., Any]:
    """Load the very content that was checked: in the meantime the file may be another."""
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "package.pt2"
        copied.write_bytes(content)
        try:
            return torch._inductor.aoti_load_package(str(copied))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise AheadOfTimeError(f"{path} cannot be loaded ({reason}): {_ANEW}") from error


def _predictor(potential: EnergyModel, for_compile: bool) -> Callable[..., tuple[Tensor, ...]]:
    """The prediction as a function of the tensors named by ``INPUT_FIELDS``."""

    def traced(*tensors: Tensor) -> tuple[Tensor, ...]:
        graph = Graph(**dict(zip(INPUT_FIELDS, tensors, strict=True)))
        return predict(potential, graph, forces=True, stress=True, for_compile=for_compile)

    return traced


def _shapes(atoms: Any, max_neighbours: Any) -> list[tuple[Any, ...]]:
    """Shapes of the tensors named by ``INPUT_FIELDS``, for one structure."""
    table = (atoms, max_neighbours)
    return [(atoms, 3), (*table, 3), table, table, table, (atoms,), (atoms,), (1, 3, 3)]


#: Their dtypes.
_DTYPES = (
    *(torch.float64, torch.float64),
    *(torch.int64, torch.int64, torch.bool, torch.int64, torch.int64),
    torch.float64,
)


def _covered(tensors: list[Tensor]) -> bool:
    """Whether compiled code may read these tensors: it trusts their number, shapes, dtypes and place."""
    if len(tensors) != len(_DTYPES) or tensors[1].dim() != 3 or min(tensors[1].shape[:2]) < _FEWEST:
        return False
    expected = zip(_shapes(*tensors[1].shape[:2]), _DTYPES, strict=True)
    return [(tuple(t.shape), t.dtype) for t in tensors] == list(expected) and all(t.is_cpu for t in tensors)


def _compile(potential: EnergyModel, path: Path) -> None:
    """Trace, export and compile into ``path``. Only shapes and dtypes of the example count, never its values."""
    shapes = _shapes(_ATOMS, _MAX_NEIGHBOURS)
    example = tuple(torch.zeros(shape, dtype=dtype) for shape, dtype in zip(shapes, _DTYPES, strict=True))
    symbolic = _shapes(torch.export.Dim("atoms", min=_FEWEST), torch.export.Dim("max_neighbours", min=_FEWEST))
    dynamic = tuple({i: size for i, size in enumerate(shape) if not isinstance(size, int)} for shape in symbolic)
    traceable = _predictor(potential, for_compile=True)
    options = {**_OPTIONS, "aot_inductor.metadata": _facts(potential)}
    with _quiet():
        # Export cannot differentiate: gradients are traced into one graph first, and that graph is exported.
        traced = make_fx(traceable, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*example)
        program = torch.export.export(traced, example, dynamic_shapes=dynamic)
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that torch's exporter raises about torch's own code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        yield


def _facts(potential: EnergyModel) -> dict[str, str]:
    """What compiled code is bound to."""
    settings = {
        "network": potential.network.config.model_dump(),
        "species": potential.species,
        "scale": potential.scale,
        "zbl_cutoff": potential.zbl_cutoff,
    }
    text = json.dumps(settings, sort_keys=True) + weights_hash(potential.state_dict())
    return {
        "format": _FORMAT,
        "potential": hashlib.sha256(text.encode()).hexdigest(),
        "dtype": str(potential.dtype).removeprefix("torch."),
        "device": potential.device.type,
        "ponita-ff": package_versions().get("ponita-ff", "unknown"),
        "torch": torch.__version__,
        "processor": _processor(),
    }


def _processor() -> str:
    """Model and a hash of what the processor can do: machine code for another one may crash."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        # Not Linux: the names there are too coarse, so the machine itself is what counts.
        return f"{platform.machine()} {platform.processor()} of {platform.node()}"
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    # The first line of each kind tells all: a machine's processors are alike.
    able = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {model} {hashlib.sha256(able.encode()).hexdigest()[:8]}"


def _read_facts(content: bytes, path: Path) -> dict[str, str]:
    """Facts from the metadata, with the file's checksums checked; none of its code is loaded."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()
            name = next(name for name in archive.namelist() if name.endswith("_metadata.json"))
            facts = json.loads(archive.read(name)) if damaged is None else None
    except (zipfile.BadZipFile, StopIteration, OSError, ValueError, RuntimeError, NotImplementedError):
        facts = None
    if not isinstance(facts, dict):
        raise AheadOfTimeError(f"{path} is damaged or not compiled code of ponita_ff: {_ANEW}")
    return facts


def _check_facts(there: dict[str, str], here: dict[str, str], path: Path) -> None:
    """Refuse code that was compiled for something else."""
    different = [
        f"{key} {there.get(key)!r} instead of {value!r}" for key, value in here.items() if there.get(key) != value
    ]
    if different:
        raise AheadOfTimeError(
            f"{path} was made for {', '.join(different)}: {_ANEW}, for this potential on this machine"
        )
