"""Settings of a training run, all validated at the start; an error names the field that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator

from ponita_ff.network.config import GRID_SIZES, FormConfig, GridConfig, PonitaConfig, form_config
from ponita_ff.settings import Section, SettingsError, merged, read_yaml, with_changes, wrong_fields
from ponita_ff.training.legacy import rename_overrides, rename_settings

__all__ = [
    "CHECKPOINT_FILE",
    "FIRST_STAGE_FOLDER",
    "POTENTIAL_FILE",
    "PRESETS",
    "ConfigError",
    "DataConfig",
    "FinalStageConfig",
    "LossConfig",
    "OptimiserConfig",
    "PotentialConfig",
    "TrainConfig",
    "UnitsConfig",
]


#: Files in the folder of a run: the state from which it resumes, and the trained potential.
CHECKPOINT_FILE, POTENTIAL_FILE = "checkpoint.pt", "potential.safetensors"

#: Folder of the first stage of a run with a final stage, inside the folder of the run.
FIRST_STAGE_FOLDER = "first"

#: Defaults that belong together, by the name of the preset. ``accurate``: the error is smaller and depends far less on
#: how a molecule is rotated, for 2.7 times the arithmetic of a step.
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {},
    "accurate": {"final_stage": {"num_ori": 32}},
}

Files = Path | Annotated[list[Path], Field(min_length=1)]


class ConfigError(SettingsError):
    """Settings that cannot be used; the message names the file and every wrong field."""


class UnitsConfig(Section):
    """Units of data files that do not state their own.

    Attributes:
        energy: Unit of energies: ``eV``, ``meV``, ``kcal/mol``, ``kJ/mol``, ``Hartree`` or ``Rydberg``.
        length: Unit of lengths: ``Angstrom``, ``Bohr`` or ``nm``. Forces are in energy / length.
    """

    energy: str
    length: str


class DataConfig(Section):
    """Labelled frames and how they are split.

    Attributes:
        path: File or list of files with the frames to train and validate on. A relative path starts at the folder of
            the settings file.
        test: File or list of files with frames for the errors reported at the end; they are never trained on. None: no
            test frames, or those of ``test_frames``.
        protocol: How ``path`` is split. ``random``: ``train``, ``validation`` and ``test_frames`` frames are drawn at
            random. ``rmd17``: the published protocol of rMD17; of the 1,000 official training frames in each file, 950
            train and 50 validate.
        train: Number of training frames, drawn at random. Needed for the random protocol.
        validation: Number of validation frames, drawn at random from the rest. Needed for the random protocol.
        test_frames: Number of test frames, drawn at random from what then remains of ``path``.
        seed: Seed of the split.
        extra_train: Files whose frames are all trained on, in addition to the training frames of ``path``. These files
            must state their own units.
        replay: Files of frames that the potential in ``potential.start`` was trained on. Training on them as well keeps
            it from forgetting them. Every third frame is held out to measure this. These files must state their own
            units.
        replay_share: Fraction of an epoch that is replayed frames, between 0 and 1. New and replayed frames are
            repeated as often as that takes.
        units: Units of ``path`` and ``test`` files that do not state their own, e.g.
            ``{energy: kcal/mol, length: Angstrom}``. None: the files state them.
        energy_key: Name of the energies in the files. None: the usual names of the format.
        forces_key: Name of the forces in the files. None: the usual names of the format.
        stress_key: Name of the stresses in the files. None: the usual names of the format.
    """

    path: Files
    test: Files | None = None
    protocol: Literal["random", "rmd17"] = "random"
    train: Annotated[int, Field(ge=1)] | None = None
    validation: Annotated[int, Field(ge=1)] | None = None
    test_frames: Annotated[int, Field(ge=0)] = 0
    seed: int = 0
    extra_train: list[Path] = Field(default=[])
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
    """What surrounds the network: reference energies, repulsion, species, and weights to start from.

    Attributes:
        reference_energies: Energy of each species that is subtracted before training. ``least-squares``: fitted to the
            training energies; with ``start``, the smallest change of its reference energies that makes its energies
            right on average. ``keep``: those of ``start``; only new elements are fitted. A path: isolated atoms in a
            structure file. A mapping: eV by chemical symbol, e.g. ``{H: -13.6, O: -2041.8}``.
        zbl_cutoff: Cutoff of the ZBL repulsion between nuclei in Å; at most ``model.cutoff``. None: no repulsion.
        extra_species: Chemical symbols of elements that the potential knows in addition to those in the training set.
        start: Potential file whose weights, scale and reference energies training starts from. None: random weights.
            ``model`` must describe its network, except for the number of orientations. The embedding of a new element
            starts from that of the nearest known element in the periodic table.
        rotations: Number of rotations of the orientation grid that the finished potential averages over. The cost of
            an evaluation is proportional to it. Training does not use it.
    """

    reference_energies: dict[str, float] | Literal["least-squares", "keep"] | Path = "least-squares"
    zbl_cutoff: Annotated[float, Field(gt=0)] | None = None
    extra_species: list[str] = Field(default=[])
    start: Path | None = None
    rotations: Annotated[int, Field(ge=1)] = 1


class LossConfig(Section):
    """Loss = energy · L(ΔE / atoms) + forces · L(ΔF) + stress · L(Δσ), with energies in eV and lengths in Å.

    Attributes:
        kind: The function L. ``mae``: mean absolute error of energies and mean Euclidean norm of the force error per
            atom. ``mse``: mean square error.
        energy: Weight of the error of the energy per atom (eV).
        forces: Weight of the error of the forces (eV/Å).
        stress: Weight of the error of the stress (eV/Å³); above 0, every frame needs a stress.
    """

    kind: Literal["mae", "mse"] = "mae"
    energy: Annotated[float, Field(ge=0)] = 1.0
    forces: Annotated[float, Field(ge=0)] = 1.0
    stress: Annotated[float, Field(ge=0)] = 0.0


class OptimiserConfig(Section):
    """Optimiser and its schedule: linear warm-up, then a cosine to zero, with clipped gradients and averaged weights.

    Attributes:
        kind: ``muon``: Muon for the matrices of the layers, Adam for all other weights. ``adam``: Adam for all weights.
        learning_rate: Largest learning rate, reached after the warm-up.
        muon_lr_multiplier: Learning rate of Muon divided by that of Adam.
        batch_size: Structures in a batch. On a GPU take the batch from which a larger one gives no more frames per
            second (``benchmarks/gpu.py`` measures that), to begin with some 1,000 atoms; and for a batch that is k
            times another, sqrt(k) times its learning rate (arXiv:2205.10287), with the same warm-up and average in
            steps. On a CPU that is better for batches of 64 than 1 or k times (``benchmarks/recipe.md``); on a GPU
            ``benchmarks/gpu_jobs/batch-rule.yaml`` tries it.
        steps: Number of training steps. With ``time``, the run ends with whichever is reached first. None: no limit.
        time: Wall-clock time of training, e.g. ``90s``, ``30m``, ``2h``, ``1d``. The schedule fits itself to it. None:
            no limit.
        warmup_steps: Number of steps in which the learning rate rises from zero.
        clip_norm: Largest norm of the gradient with respect to all weights; a longer one is scaled down to it.
        ema_decay: Decay of the exponential moving average of the weights per step; validation and the finished
            potential use the average.
        weight_decay: Decoupled weight decay, multiplied by the learning rate.
        trainable: Which weights of ``potential.start`` are trained. ``all``: all weights. ``readouts``: the readouts.
            ``layers``: the last ``last_layers`` layers and the readouts. ``low-rank``: the readouts and, for each
            matrix of the layers, a product of rank ``rank`` that is added to it (LoRA). The embedding is trained as
            well where there are new elements.
        last_layers: Number of layers that are trained with ``trainable: layers``.
        rank: Rank of the products with ``trainable: low-rank``.
        layer_decay: Factor of the learning rate for each layer between a weight and the end of the network. 1: the
            same learning rate in all layers.
        patience: Training stops after this many validations without a better one, and the best weights are kept. None:
            no early stopping.
        validate_every: Steps between two validations.
        checkpoint_every: Steps between two checkpoints.
    """

    kind: Literal["muon", "adam"] = "muon"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    muon_lr_multiplier: Annotated[float, Field(gt=0)] = 4.0
    batch_size: Annotated[int, Field(ge=1)] = 5
    steps: Annotated[int, Field(ge=1)] | None = None
    time: Annotated[str, Field(pattern=r"^\d+(\.\d+)?\s*[smhd]$")] | None = None
    warmup_steps: Annotated[int, Field(ge=0)] = 200
    clip_norm: Annotated[float, Field(gt=0)] = 10.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    trainable: Literal["all", "readouts", "layers", "low-rank"] = "all"
    last_layers: Annotated[int, Field(ge=1)] = 1
    rank: Annotated[int, Field(ge=1)] = 4
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    patience: Annotated[int, Field(ge=1)] | None = None
    validate_every: Annotated[int, Field(ge=1)] = 1000
    checkpoint_every: Annotated[int, Field(ge=1)] = 1000

    @property
    def seconds(self) -> float | None:
        """``time`` in seconds, or None."""
        if self.time is None:
            return None
        return float(self.time[:-1]) * {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}[self.time[-1]]

    def for_fraction(self, fraction: float) -> OptimiserConfig:
        """The same settings for a fraction of the time and the steps."""
        steps = None if self.steps is None else max(1, round(fraction * self.steps))
        time = None if self.seconds is None else f"{fraction * self.seconds:.3f}s"
        return self.model_copy(update={"steps": steps, "time": time})

    def for_batch_size(self, batch_size: int) -> OptimiserConfig:
        """The same settings for another batch: its learning rate by the rule of ``batch_size`` above."""
        rate = self.learning_rate * (batch_size / self.batch_size) ** 0.5
        return self.model_copy(update={"batch_size": batch_size, "learning_rate": rate})


class FinalStageConfig(Section):
    """A second stage at the end of the run that continues training on a finer grid of orientations.

    Attributes:
        num_ori: Number of orientations of the finer grid.
        share: Fraction of the run's time or steps that the final stage takes, between 0 and 1.
        learning_rate: Largest learning rate of the final stage; it falls to zero again.
        warmup_steps: Number of steps in which the learning rate of the final stage rises from zero.
    """

    num_ori: Annotated[int, Field(ge=1)] = 32
    share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    learning_rate: Annotated[float, Field(gt=0)] = 2.5e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 100


def _stage_problems(stage: FinalStageConfig, model: FormConfig) -> list[str]:
    """What keeps a final stage from being made with a network."""
    if not isinstance(model, GridConfig):
        return [f"final_stage.num_ori: the form {model.form} has no grid of orientations that could be finer"]
    if model.num_ori == 0 or stage.num_ori not in GRID_SIZES:
        return [
            f"final_stage.num_ori: must be one of {GRID_SIZES}, and model.num_ori not 0; "
            f"got {stage.num_ori} and {model.num_ori}"
        ]
    return []


class TrainConfig(Section):
    """Settings of a training run.

    Attributes:
        preset: Defaults for fields that are not given. ``fast``: smallest error for the time of training and of an
            MD step. ``accurate``: a final stage on 32 orientations; the error is smaller and depends far less on how a
            molecule is rotated, for 2.7 times the arithmetic of a step.
        data: Labelled frames and how they are split.
        model: The network; ``form`` names which, and with it the fields there are.
        potential: What surrounds the network: reference energies, repulsion, species, and weights to start from.
        loss: Weights and kind of the loss.
        optimiser: Optimiser, schedule and length of the run.
        final_stage: A second stage on a finer grid of orientations. None: there is none.
        name: Name of the potential, written to its file.
        seed: Seed of the initial weights, the order of the frames and the random rotations.
        dtype: Floating-point type of the weights and of training, ``float32`` or ``float64``.
        device: Device to train on, e.g. ``cpu``, ``cuda`` or ``cuda:1``. ``auto``: a GPU if there is one.
        backend: How a step is computed. ``native``: C++ kernels on the CPU. ``compiled``: compiled by torch.
            ``eager``: plain torch. ``auto``: native for float32 on the CPU if the kernels can be built, else eager.
        rotate: Whether every structure of a batch is rotated at random in each step (data augmentation).
        workers: Number of processes that prepare batches. 0: the training process prepares them itself.
    """

    preset: Literal["fast", "accurate"] = "fast"
    data: DataConfig
    model: Annotated[SerializeAsAny[FormConfig], BeforeValidator(form_config)] = PonitaConfig()
    potential: PotentialConfig = PotentialConfig()
    loss: LossConfig = LossConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    final_stage: FinalStageConfig | None = None
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
        """Validate nested settings; names of earlier versions are translated.

        Args:
            values: Settings as read from YAML or JSON.
            source: Where they are from, for messages.

        Raises:
            SettingsError: Naming every wrong field.
        """
        try:
            config = cls.model_validate(rename_settings(values, source))
        except ValidationError as error:
            raise ConfigError(f"{source} has settings that cannot be used:\n{wrong_fields(error)}") from None
        config._check_consistency(source)
        return config

    @classmethod
    def from_yaml(cls, path: Path, overrides: dict[str, Any] | None = None) -> TrainConfig:
        """Read a YAML file; names of earlier versions are translated.

        Relative paths in the file start at its folder, those in ``overrides`` at the working directory.

        Args:
            path: The file.
            overrides: Values by dotted field name that replace the file's, e.g. ``{"optimiser.time": "30m"}``.

        Raises:
            SettingsError: For a missing or malformed file or a wrong field.
        """
        values = rename_settings(read_yaml(path, "data: {path: FILE}"), str(path))
        overrides = rename_overrides(overrides or {})
        config = cls.from_mapping(with_changes(values, overrides, str(path)), str(path))
        return config._with_paths_from(path.parent, set(overrides))

    @property
    def inputs(self) -> list[Path]:
        """All files that a run reads."""
        data, potential = self.data, self.potential
        files = [*data.files, *data.test_files, *data.extra_train, *data.replay]
        return files + [path for path in (potential.start, potential.reference_energies) if isinstance(path, Path)]

    def with_start(self, path: Path) -> TrainConfig:
        """The same settings from the weights of another potential with the same network."""
        return self.model_copy(update={"potential": self.potential.model_copy(update={"start": path})})

    def for_batch_size(self, batch_size: int) -> TrainConfig:
        """The same settings for another batch, with learning rates by the rule of ``optimiser.batch_size``."""
        optimiser, stage = self.optimiser.for_batch_size(batch_size), self.final_stage
        if stage is not None:
            factor = optimiser.learning_rate / self.optimiser.learning_rate
            stage = stage.model_copy(update={"learning_rate": factor * stage.learning_rate})
        return self.model_copy(update={"optimiser": optimiser, "final_stage": stage})

    def with_absolute_paths(self) -> TrainConfig:
        """The same settings with absolute paths; relative ones start at the working directory."""
        return self._with_paths_from(Path(), set())

    def _with_paths_from(self, folder: Path, overridden: set[str]) -> TrainConfig:
        """Absolute paths: relative ones start at ``folder``, those of overridden fields at the working directory."""

        def resolve(path: Path, field: str) -> Path:
            return ((Path() if field in overridden else folder) / path).resolve()

        def resolve_files(files: Path | list[Path], field: str) -> Path | list[Path]:
            return [resolve(path, field) for path in files] if isinstance(files, list) else resolve(files, field)

        data, potential = self.data.model_copy(), self.potential.model_copy()
        data.path = resolve_files(data.path, "data.path")
        if data.test is not None:
            data.test = resolve_files(data.test, "data.test")
        data.extra_train = [resolve(path, "data.extra_train") for path in data.extra_train]
        data.replay = [resolve(path, "data.replay") for path in data.replay]
        if potential.start is not None:
            potential.start = resolve(potential.start, "potential.start")
        if isinstance(potential.reference_energies, Path):
            potential.reference_energies = resolve(potential.reference_energies, "potential.reference_energies")
        return self.model_copy(update={"data": data, "potential": potential})

    def stages(self, out: Path) -> list[tuple[TrainConfig, Path]]:
        """The stages of the run, each with its folder.

        Args:
            out: Folder of the run.

        Returns:
            One stage in ``out``; with ``final_stage``, a first stage in ``out/first`` and then the final one in
            ``out``, which starts from the potential of the first.
        """
        if self.final_stage is None:
            return [(self, out)]
        first_folder = out / FIRST_STAGE_FOLDER
        return [(self._first_stage(), first_folder), (self._last_stage(self.final_stage, first_folder), out)]

    def _first_stage(self) -> TrainConfig:
        assert self.final_stage is not None
        return self.model_copy(
            update={
                "final_stage": None,
                "potential": self.potential.model_copy(update={"rotations": 1}),
                "optimiser": self.optimiser.for_fraction(1.0 - self.final_stage.share),
            }
        )

    def _last_stage(self, stage: FinalStageConfig, first_folder: Path) -> TrainConfig:
        start = {"start": first_folder / POTENTIAL_FILE, "reference_energies": "keep"}
        rates = {"learning_rate": stage.learning_rate, "warmup_steps": stage.warmup_steps}
        return self.model_copy(
            update={
                "final_stage": None,
                "model": self.model.model_copy(update={"num_ori": stage.num_ori}),
                "potential": self.potential.model_copy(update=start),
                "optimiser": self.optimiser.for_fraction(stage.share).model_copy(update=rates),
            }
        )

    def can_resume(self, other: TrainConfig) -> bool:
        """Whether a checkpoint made with ``other`` can be resumed with these settings.

        All settings that change the weights must be equal. The length of the run, device and backend, how often it is
        validated and saved, and the test set may differ.
        """
        free: dict[str, Any] = dict.fromkeys(("preset", "device", "workers", "backend"), True)
        free["data"], free["potential"] = {"test"}, {"rotations"}
        free["optimiser"] = {"time", "steps", "patience", "checkpoint_every", "validate_every"}
        return self.model_dump(mode="json", exclude=free) == other.model_dump(mode="json", exclude=free)

    def _check_consistency(self, source: str) -> None:
        """Check fields that depend on one another.

        Raises:
            ConfigError: Naming every wrong field.
        """
        problems = [*self._problems(), *self._problems_without_start()]
        if problems:
            raise ConfigError(f"{source} has settings that cannot be used:\n  " + "\n  ".join(problems))

    def _problems(self) -> list[str]:
        problems = []
        if self.optimiser.steps is None and self.optimiser.time is None:
            problems.append("optimiser: give steps or time, so that the run has an end")
        if self.data.protocol == "random" and (self.data.train is None or self.data.validation is None):
            problems.append("data: give train and validation, the numbers of frames (or protocol: rmd17)")
        if (self.potential.zbl_cutoff or 0.0) > self.model.cutoff:
            problems.append("potential.zbl_cutoff: must not be beyond model.cutoff, where there are no neighbours")
        if self.final_stage is not None:
            problems += _stage_problems(self.final_stage, self.model)
        if self.optimiser.trainable == "layers" and self.optimiser.last_layers > self.model.num_layers:
            problems.append(f"optimiser.last_layers: the network has {self.model.num_layers} layers")
        if self.loss.energy + self.loss.forces + self.loss.stress == 0:
            problems.append("loss: at least one weight must be above zero")
        return problems

    def _problems_without_start(self) -> list[str]:
        if self.potential.start is not None:
            return []
        given = {
            "data.replay": bool(self.data.replay),
            "optimiser.trainable": self.optimiser.trainable != "all",
            "potential.reference_energies: keep": self.potential.reference_energies == "keep",
        }
        return [f"{field}: needs potential.start, a potential to start from" for field, used in given.items() if used]
