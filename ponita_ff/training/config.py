"""Settings of a training run, all validated at the start, each refusal naming its field."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from ponita_ff.network.config import PonitaConfig
from ponita_ff.network.orientations import GRID_SIZES
from ponita_ff.settings import Section, SettingsError, merged, read_yaml, with_changes, wrong_fields

__all__ = [
    "CHECKPOINT_FILE",
    "FIRST_STAGE",
    "POTENTIAL_FILE",
    "PRESETS",
    "ConfigError",
    "DataConfig",
    "FinishConfig",
    "LossConfig",
    "OptimiserConfig",
    "PotentialConfig",
    "TrainConfig",
]


#: In the folder of a run: its state, from which it can go on, and its result.
CHECKPOINT_FILE, POTENTIAL_FILE = "checkpoint.pt", "potential.safetensors"

#: Folder of the first part of a run with two, in that of the run.
FIRST_STAGE = "first"

#: Defaults that belong together. ``fast``: the least error for the time that training and a step of dynamics take.
#: ``accurate``: finished on a finer grid of orientations: less error and far less dependence on how a molecule is
#: turned, for 2.7 times the arithmetic of a step.
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {},
    "accurate": {"finish": {"num_ori": 32}},
}


class ConfigError(SettingsError):
    """A setting that cannot be used; the message names the file and every wrong field."""


class UnitsConfig(Section):
    """Units of a data file that does not say its own, e.g. ``{energy: kcal/mol, length: Angstrom}``."""

    energy: str
    length: str


class DataConfig(Section):
    """Labelled frames and how they are split.

    Attributes:
        path: Training (and validation) frames, a file or a list of files; a relative path starts at the config file's
            folder.
        test: Frames for the report at the end, never seen in training, a file or a list of files; None for none, or
            the split's own.
        protocol: ``"rmd17"`` is the published protocol: of the 1,000 official training frames of each file 950 train,
            50 validate.
        train: Number of training frames, drawn at random.
        validation: Number of validation frames, drawn at random from the rest.
        test_frames: Number of test frames, drawn at random from what then remains of ``path``.
        seed: Of the split.
        further: Files whose frames all train, beside those of the split; they say their own units.
        replay: Files of frames that the start was trained on, or the like, to go on training on, so that what it knew
            is not forgotten. They say their own units. Every third of them never trains: it measures what the start
            knew.
        replay_share: Their share of the frames trained on; both kinds are repeated as often as that takes.
    """

    path: Path | Annotated[list[Path], Field(min_length=1)]
    test: Path | Annotated[list[Path], Field(min_length=1)] | None = None
    protocol: Literal["random", "rmd17"] = "random"
    train: Annotated[int, Field(ge=1)] | None = None
    validation: Annotated[int, Field(ge=1)] | None = None
    test_frames: Annotated[int, Field(ge=0)] = 0
    seed: int = 0
    further: list[Path] = Field(default=[])
    replay: list[Path] = Field(default=[])
    replay_share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    units: UnitsConfig | None = None
    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None

    @property
    def files(self) -> list[Path]:
        """The files of ``path``."""
        return [self.path] if isinstance(self.path, Path) else self.path

    @property
    def test_files(self) -> list[Path]:
        """The files of ``test``."""
        return [self.test] if isinstance(self.test, Path) else self.test or []


class PotentialConfig(Section):
    """Scale and reference energies around the network.

    Attributes:
        reference_energies: ``"least-squares"`` fits one energy per species (with a start: the smallest change of the
            start's that makes its energies right on average); a path reads isolated atoms from a structure file; a
            mapping gives eV by chemical symbol; ``"keep"`` leaves a start's as they are and fits new elements only.
        zbl_cutoff: Å of the optional ZBL repulsion.
        extra_species: Chemical symbols beyond those in the training set.
        start: A potential file whose weights, scale and reference energies the training starts from, instead of
            random ones; its network must be the one that ``model`` describes, but for the number of orientations.
            Elements that it does not know begin as the nearest one in the periodic table that it knows.
        rotations: Rotations of the orientation grid that the finished potential averages over, at proportional cost;
            training does not see them.
    """

    reference_energies: dict[str, float] | Literal["least-squares", "keep"] | Path = "least-squares"
    zbl_cutoff: Annotated[float, Field(gt=0)] | None = None
    extra_species: list[str] = Field(default=[])
    start: Path | None = None
    rotations: Annotated[int, Field(ge=1)] = 1


class LossConfig(Section):
    """Loss = energy · L(ΔE / atoms) + forces · L(ΔF) + stress · L(Δσ), eV and Å.

    ``mae``: L is the mean absolute value for energies and the mean Euclidean norm per atom for forces; ``mse``: the
    mean square.
    """

    kind: Literal["mae", "mse"] = "mae"
    energy: Annotated[float, Field(ge=0)] = 1.0
    forces: Annotated[float, Field(ge=0)] = 1.0
    stress: Annotated[float, Field(ge=0)] = 0.0


class OptimiserConfig(Section):
    """Linear warm-up, cosine to zero, clipped gradients, exponential moving average of the weights.

    ``kind``: ``muon`` is Muon for the matrices of the layers, at ``muon_rate`` times the learning rate, and Adam for
    the rest; ``adam`` is Adam for all.

    With a start, ``trains`` chooses what changes: ``all``; the ``readouts`` alone; the last ``last_layers`` layers
    (``layers``) and the readouts; or the readouts and a product of rank ``rank`` that is added to each matrix of the
    layers (``low-rank``). The embedding does, too, where there are new elements. ``layer_decay`` multiplies the
    learning rate once for every layer that lies between a weight and the end.
    """

    kind: Literal["muon", "adam"] = "muon"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    muon_rate: Annotated[float, Field(gt=0)] = 4.0
    batch_size: Annotated[int, Field(ge=1)] = 5
    steps: Annotated[int, Field(ge=1)] | None = None
    time: Annotated[str, Field(pattern=r"^\d+(\.\d+)?\s*[smhd]$")] | None = None
    warmup_steps: Annotated[int, Field(ge=0)] = 200
    clip_norm: Annotated[float, Field(gt=0)] = 10.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    trains: Literal["all", "readouts", "layers", "low-rank"] = "all"
    last_layers: Annotated[int, Field(ge=1)] = 1
    rank: Annotated[int, Field(ge=1)] = 4
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    patience: Annotated[int, Field(ge=1)] | None = None
    validate_every: Annotated[int, Field(ge=1)] = 1000
    checkpoint_every: Annotated[int, Field(ge=1)] = 1000

    @property
    def seconds(self) -> float | None:
        """The wall-clock budget in seconds, or None."""
        if self.time is None:
            return None
        return float(self.time[:-1]) * {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}[self.time[-1]]

    def part(self, share: float) -> OptimiserConfig:
        """The same for a part of the time and the steps."""
        steps = None if self.steps is None else max(1, round(share * self.steps))
        seconds = None if self.seconds is None else f"{share * self.seconds:.3f}s"
        return self.model_copy(update={"steps": steps, "time": seconds})


class FinishConfig(Section):
    """A last part of the run that goes on with the trained potential on a finer grid of orientations.

    Attributes:
        num_ori: The grid.
        share: Of the run's time or steps.
        learning_rate: At its start; it falls to zero again.
        warmup_steps: Until it is reached.
    """

    num_ori: Annotated[int, Field(ge=1)] = 32
    share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    learning_rate: Annotated[float, Field(gt=0)] = 2.5e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 100


def _unlisted(paths: list[Path], like: Path | list[Path]) -> Path | list[Path]:
    return paths if isinstance(like, list) else paths[0]


class TrainConfig(Section):
    """A whole run.

    ``preset`` chooses defaults for fields that are not given (:data:`PRESETS`).
    """

    preset: Literal["fast", "accurate"] = "fast"
    data: DataConfig
    model: PonitaConfig = PonitaConfig()
    potential: PotentialConfig = PotentialConfig()
    loss: LossConfig = LossConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    finish: FinishConfig | None = None
    name: str = "potential"
    seed: int = 0
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "auto"
    backend: Literal["auto", "native", "compiled", "eager"] = "auto"
    rotate: bool = True
    workers: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any) -> Any:
        name = values.get("preset", "fast") if isinstance(values, dict) else None
        return merged(PRESETS[name], values) if isinstance(name, str) and name in PRESETS else values

    @classmethod
    def from_mapping(cls, values: Any, source: str = "settings") -> TrainConfig:
        """Validate a mapping.

        Raises:
            ConfigError: Naming every wrong field.
        """
        try:
            config = cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{source} has settings that cannot be used:\n{wrong_fields(error)}") from None
        config._check_together(source)
        return config

    @classmethod
    def from_yaml(cls, path: Path, overrides: dict[str, Any] | None = None) -> TrainConfig:
        """Read a YAML file; relative paths in it start at its folder.

        Args:
            path: The file.
            overrides: Values by dotted field name that replace the file's, e.g. ``{"optimiser.time": "30m"}``.

        Raises:
            SettingsError: For a missing or malformed file or a wrong field.
        """
        values = with_changes(read_yaml(path, "data: {path: FILE}"), overrides or {}, str(path))
        config = cls.from_mapping(values, str(path))
        config._resolve_paths(path.parent, set(overrides or {}))
        return config

    def _resolve_paths(self, folder: Path, given: set[str]) -> None:
        """Relative paths start at the file's folder, those given on the command line at the working directory."""

        def resolve(path: Path, field: str) -> Path:
            return ((Path() if field in given else folder) / path).resolve()

        self.data.path = _unlisted([resolve(path, "data.path") for path in self.data.files], self.data.path)
        if self.data.test is not None:
            self.data.test = _unlisted([resolve(path, "data.test") for path in self.data.test_files], self.data.test)
        self.data.further = [resolve(path, "data.further") for path in self.data.further]
        self.data.replay = [resolve(path, "data.replay") for path in self.data.replay]
        if self.potential.start is not None:
            self.potential.start = resolve(self.potential.start, "potential.start")
        if isinstance(self.potential.reference_energies, Path):
            self.potential.reference_energies = resolve(
                self.potential.reference_energies, "potential.reference_energies"
            )

    def stages(self, out: Path) -> list[tuple[TrainConfig, Path]]:
        """The run's parts, each with its folder: one, in ``out``, or with ``finish`` one in ``out/first`` before it."""
        if self.finish is None:
            return [(self, out)]
        first, potential = out / FIRST_STAGE, self.potential
        beginning = self.model_copy(
            update={
                "finish": None,
                "potential": potential.model_copy(update={"rotations": 1}),
                "optimiser": self.optimiser.part(1.0 - self.finish.share),
            }
        )
        end = self.model_copy(
            update={
                "finish": None,
                "model": self.model.model_copy(update={"num_ori": self.finish.num_ori}),
                "potential": potential.model_copy(
                    update={"start": first / POTENTIAL_FILE, "reference_energies": "keep"}
                ),
                "optimiser": self.optimiser.part(self.finish.share).model_copy(
                    update={
                        "learning_rate": self.finish.learning_rate,
                        "warmup_steps": self.finish.warmup_steps,
                    }
                ),
            }
        )
        return [(beginning, first), (end, out)]

    def same_run(self, other: TrainConfig) -> bool:
        """Whether a checkpoint of one may be continued with the other: all that shapes results must be equal.

        The length of the run, where and how fast it runs, how often it is looked at, and what is made of the result
        may differ.
        """
        free: dict[str, Any] = dict.fromkeys(("preset", "device", "workers", "backend"), True)
        free["data"], free["potential"] = {"test"}, {"rotations"}
        free["optimiser"] = {"time", "steps", "patience", "checkpoint_every", "validate_every"}
        return self.model_dump(mode="json", exclude=free) == other.model_dump(mode="json", exclude=free)

    def _check_together(self, source: str) -> None:
        problems = []
        if self.optimiser.steps is None and self.optimiser.time is None:
            problems.append("optimiser: give steps or time, so that the run has an end")
        if self.data.protocol == "random" and (self.data.train is None or self.data.validation is None):
            problems.append("data: give train and validation, the numbers of frames (or protocol: rmd17)")
        if (self.potential.zbl_cutoff or 0.0) > self.model.cutoff:
            problems.append("potential.zbl_cutoff: must not be beyond model.cutoff, where there are no neighbours")
        if self.finish is not None and (self.model.num_ori == 0 or self.finish.num_ori not in GRID_SIZES):
            problems.append(
                f"finish.num_ori: must be one of {GRID_SIZES}, and model.num_ori not 0; "
                f"got {self.finish.num_ori} and {self.model.num_ori}"
            )
        if self.potential.start is None:
            problems += [
                f"{field}: means something with potential.start only"
                for field, given in (
                    ("data.replay", bool(self.data.replay)),
                    ("optimiser.trains", self.optimiser.trains != "all"),
                    ("potential.reference_energies: keep", self.potential.reference_energies == "keep"),
                )
                if given
            ]
        if self.optimiser.trains == "layers" and self.optimiser.last_layers > self.model.num_layers:
            problems.append(f"optimiser.last_layers: the network has {self.model.num_layers} layers")
        if self.loss.energy + self.loss.forces + self.loss.stress == 0:
            problems.append("loss: at least one weight must be above zero")
        if problems:
            raise ConfigError(f"{source} has settings that cannot be used:\n  " + "\n  ".join(problems))
